// race_detector.h - happens-before: which accesses are ordered, and a report of two that are not.
// Every edge the kernels can make is here: warp collectives, barriers, mbarriers, release/acquire flags, landed copies.
#pragma once
#include "simt/state.h"
#include "simt/trace.h"

namespace xlstm::simt {

void race_launch_begins();
void race_domain_begins();
void race_domain_ends();  // throws Error with what was found
void race_access(const Access& access);
// A read of shared memory by the asynchronous proxy (wgmma, TMA store): the writer must have fenced its proxy.
void race_async_read(const void* p, size_t bytes, const Site& site);
// An asynchronous write is an actor of its own: returns the epoch that its completion publishes.
uint32_t race_async_write(const void* p, size_t bytes, const Site& site);

// Whole warps (barriers): what the thread did is published under its warp's clock.
void order_release(Clock& to, Fiber* by);
void order_acquire(const Clock& from, Fiber* by);
// Single threads (flags, mbarriers): what other lanes did counts only after a warp or block barrier.
void order_release_single(Clock& to, Fiber* by);
void order_acquire_single(const Clock& from, Fiber* by);
void order_completion(Clock& to, const Fiber* issuer, uint32_t epoch);
void order_warp(Warp* warp, unsigned mask);

}  // namespace xlstm::simt
