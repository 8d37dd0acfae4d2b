// memory.h - addresses: generic, global, shared (of this block or of a peer in its cluster), parameters; checked to the byte.
#pragma once
#include "ptx/races.h"

namespace xlstm::ptx {

uint64_t address(const Warp& w, const Operand& o, int lane);

// The bytes at an address of i.space. Faults: misaligned, outside every allocation or the block's shared memory, wrong space.
uint8_t* resolve(Warp& w, const Instruction& i, uint64_t address, uint32_t bytes, int lane, Access access);
uint8_t* shared_at(Warp& w, const Instruction& i, Block& b, uint64_t offset, uint32_t bytes, int lane, Access access);
void check_global(const Warp& w, const Instruction& i, uint64_t address, uint32_t bytes, int lane);
Block& peer(const Warp& w, const Instruction& i, uint64_t rank);
Block& block_of(const Warp& w, const Instruction& i, uint64_t address);  // of a shared::cluster address

// Has somebody written these bytes? Known of shared memory only; true elsewhere.
bool defined(const Warp& w, const uint8_t* p, uint32_t bytes);
void set_defined(const Warp& w, const uint8_t* p, uint32_t bytes, bool value);
void forget_ranges();  // tensors may have gone since the last launch

}  // namespace xlstm::ptx
