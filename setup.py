"""The Extension list and the compiler's flags; all else is in pyproject.toml."""

import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

# With FASTPUSH_TRACE=1 the extensions are built for coverage, line by line; never for a release.
TRACE = os.environ.get("FASTPUSH_TRACE") == "1"

# Without a procedure linkage table a call into Python is one jump less: 2 to 3 % of a payload.
FLAGS = ["-O2", "-fno-plt", "-g0", "-Wall", "-Wsign-compare", "-Wconversion", "-Wno-unused-function"]
MACROS = [("CYTHON_TRACE", "1"), ("CYTHON_USE_SYS_MONITORING", "0")] if TRACE else []

MODULES = [
    "fastpush._encode",
    "fastpush._notification",
    "fastpush._connection",
    "fastpush.http2._hpack",
    "fastpush.http2._engine",
    "fastpush.simulator._server",
    "fastpush.gateway.dispatcher._pages",
]


def extension(module):
    source = module.replace(".", "/") + ".pyx"
    return Extension(
        module,
        [source],
        depends=glob(source.replace(".pyx", "_*.pxi")),
        extra_compile_args=FLAGS,
        extra_link_args=["-Wl,-s"],
        define_macros=MACROS,
    )


setup(
    ext_modules=cythonize(
        [extension(module) for module in MODULES],
        compiler_directives={"language_level": 3, "linetrace": TRACE, "embedsignature": True},
        show_all_warnings=False,
    )
)
