"""The one thing pyproject.toml cannot say: a C kernel that is built where there is a compiler and done without where there is none."""

import sys
import sysconfig

from setuptools import Extension, setup

stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none: they run the torch path

# On Linux torch brings GNU's OpenMP runtime, which the kernel then shares; elsewhere the kernel runs on one thread.
openmp = ["-fopenmp"] if sys.platform == "linux" else []

setup(
    ext_modules=[
        Extension(
            "asterism.core._mix",
            ["src/asterism/core/_mix.c"],
            # no fused multiply-add: every instruction set then gives the same bits
            extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-ffp-contract=off", *openmp],
            extra_link_args=openmp,
            py_limited_api=stable_abi,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
