// Names the extension for Hugging Face's kernel-builder. csrc/schema.cpp declares the operators.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
