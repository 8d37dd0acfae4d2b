// config.h - the tiles of the walks: the sizes that a tile is chosen by, as plain structs, and what follows from them.
//
//   name              contracted   outputs   steps   stages   threads   row passes
//   Narrow64           64           64        64      2        128       1
//   Narrow128         128           64        64      2        128       1
//   Narrow256         256           64        64      1        256       2
//   Wide128           128          128        64      2        128       2
//   Wide256OneStage   256          128        64      1        256       2
//   Wide256           256          128        64      2        256       2
//   Short256          256          128        32      2        256       2
//   Short512          512           64        32      1        256       1
//   Short512Narrow    512           32        32      1        256       1
//   Short256States    256           64        32      2        256       1
// choice.cuh chooses. An earlier tile of the same columns is what smaller devices get.
#pragma once

namespace xlstm::mlstm {

// CONTRACTED: columns of A and B, OUTPUTS: columns of X and O; heads with fewer columns are padded with zeros on the way in.
// L: steps of a chunk. STAGES: chunks in shared memory. OUTPUT_WARPS: warps over the columns of O, the rest over those of A.
// ROW_PASSES: passes over the rows of O, each with L / ROW_PASSES rows of accumulators. BetterTile: what a device with the shared
// memory for it gets instead.
struct TileSizes {
  static constexpr int STAGES = 2, THREADS = 128, OUTPUT_WARPS = 4, ROW_PASSES = 1;
  using BetterTile = void;
};
struct Narrow64 : TileSizes {
  static constexpr int CONTRACTED = 64, OUTPUTS = 64, L = 64;
};
struct Narrow128 : TileSizes {
  static constexpr int CONTRACTED = 128, OUTPUTS = 64, L = 64;
};
struct Narrow256 : TileSizes {
  static constexpr int CONTRACTED = 256, OUTPUTS = 64, L = 64, STAGES = 1, THREADS = 256, ROW_PASSES = 2;
};
struct Wide128 : TileSizes {
  static constexpr int CONTRACTED = 128, OUTPUTS = 128, L = 64, ROW_PASSES = 2;
};
struct Wide256 : TileSizes {
  static constexpr int CONTRACTED = 256, OUTPUTS = 128, L = 64, THREADS = 256, ROW_PASSES = 2;
};
struct Wide256OneStage : Wide256 {
  static constexpr int STAGES = 1;
  using BetterTile = Wide256;
};
struct Short256 : TileSizes {
  static constexpr int CONTRACTED = 256, OUTPUTS = 128, L = 32, THREADS = 256, ROW_PASSES = 2;
};
struct Short512 : TileSizes {
  static constexpr int CONTRACTED = 512, OUTPUTS = 64, L = 32, STAGES = 1, THREADS = 256;
};
struct Short512Narrow : TileSizes {
  static constexpr int CONTRACTED = 512, OUTPUTS = 32, L = 32, STAGES = 1, THREADS = 256, OUTPUT_WARPS = 2;
};
struct Short256States : TileSizes {
  static constexpr int CONTRACTED = 256, OUTPUTS = 64, L = 32, THREADS = 256;
};

// P of a chunk is dealt to the warps in jobs: 16 rows by JOB_KEY_TILES tiles of 8 keys, inside the triangle of the forward walks;
// the reverse walks turn it by half a turn. Four bits a job in two numbers, which are read by shifting.
struct Job {
  unsigned row_tile, first_key_tile;
};
struct Jobs {
  unsigned row_tiles, first_key_tiles;
  int count;
};
template <int COUNT>
constexpr Jobs packed(const Job (&jobs)[COUNT]) {
  static_assert(COUNT <= 8, "four bits a job in 32");
  Jobs all{0, 0, COUNT};
  for (int i = 0; i < COUNT; ++i) {
    all.row_tiles |= jobs[i].row_tile << 4 * i;
    all.first_key_tiles |= jobs[i].first_key_tile << 4 * i;
  }
  return all;
}

// 64 steps: 4 x 8 tiles in jobs of 4 tiles of keys, long ones first. 32 steps: 2 x 4 tiles, one a job.
constexpr Jobs kJobs64 = packed({{3, 0}, {3, 4}, {2, 0}, {1, 0}, {2, 4}, {0, 0}});
constexpr Jobs kJobs32 = packed({{1, 0}, {1, 1}, {1, 2}, {1, 3}, {0, 0}, {0, 1}});

template <class Sizes>
struct WalkTile : Sizes {
  using Sizes::CONTRACTED, Sizes::OUTPUTS, Sizes::L, Sizes::THREADS, Sizes::OUTPUT_WARPS, Sizes::ROW_PASSES;
  static constexpr int WARPS = THREADS / 32, CONTRACTED_WARPS = WARPS / OUTPUT_WARPS;
  // Of a warp: 16-row tiles of S^T, columns of A, 8-column tiles of O.
  static constexpr int STATE_TILES = OUTPUTS / (16 * OUTPUT_WARPS), WARP_CONTRACTED = CONTRACTED / CONTRACTED_WARPS,
                       OUTPUT_TILES = 2 * STATE_TILES;
  // 16-row tiles of a chunk and of a pass, 8-column tiles of P.
  static constexpr int ROW_TILES = L / 16, PASS_ROW_TILES = ROW_TILES / ROW_PASSES, KEY_TILES = L / 8;
  // Tiles of O that a warp keeps after the sum over the warps that share its columns.
  static constexpr int KEPT_TILES = PASS_ROW_TILES * OUTPUT_TILES / CONTRACTED_WARPS;
  static constexpr int JOB_KEY_TILES = L == 64 ? 4 : 1;
  static constexpr int JOBS = (L == 64 ? kJobs64 : kJobs32).count;
  static constexpr unsigned JOB_ROW_TILES = (L == 64 ? kJobs64 : kJobs32).row_tiles;
  static constexpr unsigned JOB_FIRST_KEY_TILES = (L == 64 ? kJobs64 : kJobs32).first_key_tiles;
  static_assert(L == 64 || L == 32, "the job tables know two chunk lengths");
  static_assert(WARPS % OUTPUT_WARPS == 0, "every warp has a place in OUTPUT_WARPS x CONTRACTED_WARPS");
  static_assert(OUTPUTS % (16 * OUTPUT_WARPS) == 0, "every warp has whole 16-row tiles of S^T");
  static_assert(WARP_CONTRACTED % 16 == 0, "every warp has whole k steps of A S");
  static_assert(ROW_TILES % ROW_PASSES == 0, "every pass has whole row tiles");
  static_assert(PASS_ROW_TILES * OUTPUT_TILES % CONTRACTED_WARPS == 0, "every warp keeps as many tiles of O");
  static_assert(CONTRACTED % 64 == 0 && OUTPUTS % 32 == 0, "a row of a tile is a whole period of the swizzle");
};

}  // namespace xlstm::mlstm
