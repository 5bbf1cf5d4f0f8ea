"""PTX as text: compiling CUDA to it, and parsing it to plain data."""
