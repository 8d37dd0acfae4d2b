// vector.cuh - up to 16 bytes per access where the address allows it, element by element where it does not or at a ragged tail.
#pragma once
#include <type_traits>

#include "device/kernel.cuh"

namespace xlstm::device {

namespace detail {
template <int Bytes>
struct Word {
  static_assert(Bytes == 2 || Bytes == 4 || Bytes == 8 || Bytes == 16, "one access has 2, 4, 8 or 16 bytes");
  using Small = std::conditional_t<Bytes == 2, uint16_t, uint32_t>;
  using type = std::conditional_t<Bytes == 16, uint4, std::conditional_t<Bytes == 8, uint2, Small>>;
};
}  // namespace detail

// One access of a whole Word (uint2, float2, float4, ...) at an address that is a multiple of its size.
template <class Word>
XLSTM_DEVICE Word load_word(const void* source XLSTM_SITE) {
#ifdef __CUDACC__
  return *static_cast<const Word*>(source);
#else
  Word word;
  simt::vector_load(&word, source, sizeof(Word), site);
  return word;
#endif
}
template <class Word>
XLSTM_DEVICE void store_word(void* destination, Word word XLSTM_SITE) {
#ifdef __CUDACC__
  *static_cast<Word*>(destination) = word;
#else
  simt::vector_store(destination, &word, sizeof(Word), site);
#endif
}

// values[j] = source[j] for j < count, 0 beyond: one access when count is N and the address is a multiple of N elements.
template <int N, class T>
XLSTM_DEVICE void load_vector(T (&values)[N], const T* source, int count = N XLSTM_SITE) {
  constexpr int kBytes = N * int(sizeof(T));
  using Word = typename detail::Word<kBytes>::type;
  if (count >= N && reinterpret_cast<uintptr_t>(source) % kBytes == 0) {
#ifdef __CUDACC__
    union {
      Word word;
      T elements[N];
    } both;
    both.word = *reinterpret_cast<const Word*>(source);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = both.elements[j];
#else
    static_assert(sizeof(Word) == kBytes, "");
    simt::vector_load(values, source, kBytes, site);
#endif
    return;
  }
#pragma unroll
  for (int j = 0; j < N; ++j) values[j] = j < count ? source[j] : T(0.0f);
}

// destination[j] = values[j] for j < count.
template <int N, class T>
XLSTM_DEVICE void store_vector(T* destination, const T (&values)[N], int count = N XLSTM_SITE) {
  constexpr int kBytes = N * int(sizeof(T));
  using Word = typename detail::Word<kBytes>::type;
  if (count >= N && reinterpret_cast<uintptr_t>(destination) % kBytes == 0) {
#ifdef __CUDACC__
    union {
      Word word;
      T elements[N];
    } both;
#pragma unroll
    for (int j = 0; j < N; ++j) both.elements[j] = values[j];
    *reinterpret_cast<Word*>(destination) = both.word;
#else
    static_assert(sizeof(Word) == kBytes, "");
    simt::vector_store(destination, values, kBytes, site);
#endif
    return;
  }
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (j < count) destination[j] = values[j];
}

}  // namespace xlstm::device
