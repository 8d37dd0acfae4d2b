// words.cuh - the neighbouring units that one thread holds, as one register: two of 16 bits, one of 16, or one of 32.
#pragma once
#include <cstring>
#include <type_traits>

#include "device/convert.cuh"
#include "device/packed.cuh"
#include "device/vector.cuh"

namespace xlstm::slstm {

template <class Element, int UNITS>
struct UnitWord {
  static_assert(UNITS * sizeof(Element) <= 4, "one register holds the units");
  using Memory = std::conditional_t<UNITS * sizeof(Element) == 4, uint32_t, uint16_t>;

  static XLSTM_DEVICE uint32_t pack(const float (&units)[UNITS]) {
    if constexpr (sizeof(Element) == 4)
      return __float_as_uint(units[0]);
    else
      return device::pack<Element>(units[0], units[UNITS - 1]);
  }
  static XLSTM_DEVICE float unit(uint32_t word, int i) {
    if constexpr (sizeof(Element) == 4)
      return __uint_as_float(word);
    else
      return i == 0 ? device::low_half<Element>(word) : device::high_half<Element>(word);
  }
  static XLSTM_DEVICE uint32_t load(const void* p XLSTM_SITE) { return device::load_word<Memory>(p XLSTM_FORWARD_SITE); }
  static XLSTM_DEVICE void store(void* p, uint32_t word XLSTM_SITE) {
    device::store_word<Memory>(p, Memory(word) XLSTM_FORWARD_SITE);
  }
};

// The four tails of a unit (cell.cuh): two registers of float16 pairs beside 16-bit elements, four of float32 beside float32.
template <class Element>
struct TailWords {
  using Tail = std::conditional_t<sizeof(Element) == 4, float, __half>;
  static constexpr int WORDS = int(sizeof(Tail));     // per unit
  static constexpr int SF_WORD = WORDS == 4 ? 1 : 0;  // whose uppermost bit is the sign of sf

  static XLSTM_DEVICE void pack(uint32_t* words, float d, float sf, float u, float w) {
    if constexpr (WORDS == 4) {
      words[0] = __float_as_uint(d), words[1] = __float_as_uint(sf), words[2] = __float_as_uint(u), words[3] = __float_as_uint(w);
    } else {
      words[0] = device::pack<__half>(d, sf), words[1] = device::pack<__half>(u, w);
    }
  }
  static XLSTM_DEVICE void unpack(const uint32_t* words, float& d, float& sf, float& u, float& w) {
    if constexpr (WORDS == 4) {
      d = __uint_as_float(words[0]), sf = __uint_as_float(words[1]), u = __uint_as_float(words[2]), w = __uint_as_float(words[3]);
    } else {
      d = device::low_half<__half>(words[0]), sf = device::high_half<__half>(words[0]);
      u = device::low_half<__half>(words[1]), w = device::high_half<__half>(words[1]);
    }
  }
};

// N words in one access of 8 or 16 bytes.
template <int N>
XLSTM_DEVICE void store_words(void* p, const uint32_t (&words)[N] XLSTM_SITE) {
  if constexpr (N == 4)
    device::store_word<uint4>(p, uint4{words[0], words[1], words[2], words[3]} XLSTM_FORWARD_SITE);
  else
    device::store_word<uint2>(p, uint2{words[0], words[1]} XLSTM_FORWARD_SITE);
}
template <int N>
XLSTM_DEVICE void load_words(uint32_t (&words)[N], const void* p XLSTM_SITE) {
  if constexpr (N == 4) {
    const uint4 v = device::load_word<uint4>(p XLSTM_FORWARD_SITE);
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else {
    const uint2 v = device::load_word<uint2>(p XLSTM_FORWARD_SITE);
    words[0] = v.x, words[1] = v.y;
  }
}

}  // namespace xlstm::slstm
