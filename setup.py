"""The one thing pyproject.toml cannot say: C kernels that are built where there is a compiler and done without where there is none."""

import sys
import sysconfig

from setuptools import Extension, setup

stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none: they run the torch path

# On Linux torch brings GNU's OpenMP runtime, which the kernels then share; elsewhere they run on one thread.
openmp = ["-fopenmp"] if sys.platform == "linux" else []

setup(
    ext_modules=[
        Extension(
            f"asterism.core.{name}",
            [f"src/asterism/core/{name}.c"],
            depends=["src/asterism/core/_kernel.h"],
            # no fused multiply-add unless written so: mixing then gives the same bits on every instruction set
            extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-ffp-contract=off", *openmp],
            extra_link_args=openmp,
            py_limited_api=stable_abi,
            optional=True,
        )
        for name in ("_mix", "_sift", "_grouped")
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
