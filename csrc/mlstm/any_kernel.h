// any_kernel.h - one kernel of this build, to ask a device about: if it has code for this one, it has code for all of them.
#pragma once

namespace xlstm::mlstm {
const void* any_kernel();  // defined in dots.cu
}
