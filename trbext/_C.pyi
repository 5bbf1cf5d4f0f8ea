version: str
torch_built_against: str
compiler: str
cuda_compiled: bool
cuda_archs: str
cpu_isa: str
