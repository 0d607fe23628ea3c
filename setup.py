"""The one thing pyproject.toml cannot say: a C kernel that is built where there is a compiler and done without where there is none."""

import sys
import sysconfig

from setuptools import Extension, setup

stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")  # free-threaded Pythons have none: they run the torch path

setup(
    ext_modules=[
        Extension(
            "asterism.core._mix",
            ["src/asterism/core/_mix.c"],
            # no fused multiply-add: every instruction set then gives the same bits
            extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-ffp-contract=off"],
            py_limited_api=stable_abi,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if stable_abi else {},
)
