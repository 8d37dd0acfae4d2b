// split/concept.h - what the bodies of split/forward.cuh and split/backward.cuh ask of a Product and of an Exchange.
//
// Product: R of one block on chip, and its product with h or dg (product.cuh, product_float32.cuh).
//   Params           KernelForward or KernelBackward: which pass it serves
//   Element          of x, R and h
//   UNITS, THREADS   of a block
//   MAX_DH           the largest head that fits, with Product::shared_bytes(DH) bytes of shared memory per block
//   Product(shared, p, place)     loads R; there after the next block barrier
//   forward:
//     STEP, STEPS                 inputs of a step of the contraction; steps of a warp, at most
//     lane                        packets of row lane / 4 are this lane's
//     step_index(i)               which step of the head is step i of this warp
//     input(i)                    the first input of this lane's packet of step i
//     packet(values)              from float32 to a packet
//     multiply(operand)           the block's partial sums, into shared memory
//     gates(raw, row, unit)       after the block barrier: R h + b of one cell
//   backward:
//     SENT                        targets of 16 inputs that a warp has, at most
//     target(i)                   the number of target i, counted over the head
//     put(buffer, row, unit, dg)  dg of one cell into shared memory; returns it as rounded
//     store_dx(dx, stride, dg)    what `put` returned, to the four gates
//     multiply(buffer, send)      send(target, place, values) for every part of dh
//
// Exchange: how the blocks of a group hand h (forward) or parts of dh (backward) to each other; exchange e = 1, 2, ... comes
// after step e - 1. An exchange that has no use for an argument leaves it unnamed: h through distributed shared memory needs no
// place in the output, h through the output no second copy.
//   forward:
//     after_barrier(e, more)                      behind a step's block barrier; more: exchange e takes place
//     publish(e, h, row, unit, DH)                by all lanes of the cell warps, after the cell's h went to the output
//     receive(operand, e, product, length, at)    by all warps; the lane's row has `length` steps and begins at `at` of h
//   backward:
//     after_barrier(e)
//     send(e, target, place, values)              by the lanes that hold the values
//     sent(e, product, DH)                        by all lanes, after the warp's last `send` of e
//     receive(e, row_pair, unit)                  by the cell warps: dh of two rows of one unit, summed over the blocks
#pragma once
#include <type_traits>
#include <utility>

#include "slstm/kernels.h"
#include "slstm/split/geometry.cuh"

namespace xlstm::slstm {

// The products that serve one pass, in order of preference.
template <class... P>
struct Products {};

struct AnySend {
  template <class Vector>
  XLSTM_DEVICE void operator()(int, int, const Vector&) const {}
};

// Of a call on a constant object; a missing member is an error in the line that names it.
#define XLSTM_RETURNS(type, type_of_object, call) \
  static_assert(std::is_same_v<type, decltype(std::declval<const type_of_object&>().call)>, #call " returns " #type)

// Instantiated by the bodies; empty but for their assertions.
template <class Product, class Params>
struct RequireProduct {
  static_assert(std::is_same_v<typename Product::Params, Params>, "the product is of the other pass");
  static_assert(Product::THREADS % 32 == 0 && Product::THREADS >= kSplitRows * Product::UNITS / 2, "whole warps, all cells");
  static_assert(std::is_same_v<decltype(Product::shared_bytes(int(Product::MAX_DH))), int>, "shared_bytes(DH)");
  static_assert(std::is_constructible_v<Product, unsigned char*, const Params&, const SplitPlace&>, "Product(shared, p, place)");
};

template <class Product, class Exchange>
struct RequireForward : RequireProduct<Product, KernelForward> {
  using Element = typename Product::Element;
  using Operand = uint4[Product::STEPS];
  static_assert(Product::STEP * Product::STEPS <= Product::MAX_DH, "a warp has no more steps than the head");
  static_assert(Product::THREADS >= kSplitRows * Product::UNITS, "a thread per cell");
  static_assert(std::is_same_v<decltype(Product::packet(std::declval<const float*>())), uint4>, "packet(values) returns uint4");
  XLSTM_RETURNS(int, Product, step_index(0));
  XLSTM_RETURNS(int, Product, input(0));
  XLSTM_RETURNS(void, Product, multiply(std::declval<const Operand&>()));
  XLSTM_RETURNS(void, Product, gates(std::declval<float (&)[4]>(), 0, 0));
  XLSTM_RETURNS(void, Exchange, after_barrier(1, true));
  XLSTM_RETURNS(void, Exchange, publish(1, std::declval<Element>(), 0, 0, 0));
  XLSTM_RETURNS(void, Exchange, receive(std::declval<Operand&>(), 1, std::declval<const Product&>(), 0, int64_t(0)));
};

template <class Product, class Exchange>
struct RequireBackward : RequireProduct<Product, KernelBackward> {
  using Rounded = typename Product::Rounded;
  static_assert(Product::SENT <= 32, "a lane per target");
  static_assert(std::is_same_v<decltype(Product::store_dx(nullptr, 0, std::declval<const Rounded&>())), void>, "store_dx");
  XLSTM_RETURNS(int, Product, target(0));
  XLSTM_RETURNS(Rounded, Product, put(0, 0, 0, std::declval<const float (&)[4]>()));
  XLSTM_RETURNS(void, Product, multiply(0, AnySend{}));
  XLSTM_RETURNS(void, Exchange, after_barrier(1));
  XLSTM_RETURNS(void, Exchange, sent(1, std::declval<const Product&>(), 0));
  XLSTM_RETURNS(float2, Exchange, receive(1, 0, 0));
};
#undef XLSTM_RETURNS

}  // namespace xlstm::slstm
