// element_type.h - the dtype of a launch's inputs, chosen at run time.
#pragma once

namespace xlstm {

enum class ElementType { Float32, BFloat16, Float16 };

}  // namespace xlstm
