"""A library linked here loads where glibc is older: it asks for no function in a version after 2.28."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import old_glibc
import pytest

SYMBOLS = """
0000000000089380 g    DF .text  0000000000000eed (GLIBC_2.2.5) pthread_create
0000000000089380 g    DF .text  0000000000000eed  GLIBC_2.34  pthread_create
0000000000086000 g    DF .text  0000000000000034  GLIBC_2.30  pthread_clockjoin
0000000000085000 g    DF .text  000000000000009d (GLIBC_2.2.5) dlmopen
0000000000085000 g    DF .text  000000000000009d (GLIBC_2.3.4) dlmopen
0000000000085000 g    DF .text  000000000000009d  GLIBC_2.34  dlmopen
0000000000091b60 g    DF .text  000000000000009d (GLIBC_2.2.5) shm_open
0000000000091b60 g    DF .text  000000000000009d  GLIBC_2.34  shm_open
00000000000faab0 g    DF .text  0000000000000034  GLIBC_2.3.3 nftw
0000000000088000 g    DF .text  0000000000000034 (GLIBC_2.2.5) pthread_cond_wait
0000000000088000 g    DF .text  0000000000000034  GLIBC_2.3.2 pthread_cond_wait
"""

THREADS = """
#include <dlfcn.h>
#include <stdexcept>
#include <memory>
#include <string>
#include <thread>
struct Counted { int* left; ~Counted() { ++*left; } };
extern "C" int said(char* text) {
  int left = 0, looked = 0;
  auto shared = std::make_shared<Counted>(Counted{&left});
  left = 0;
  std::thread([copy = shared, &looked] { looked = dlsym(nullptr, "malloc") != nullptr; }).join();
  shared.reset();
  try {
    throw std::runtime_error("raised in C++");
  } catch (const std::exception& error) {
    std::string(error.what()).copy(text, 13);
  }
  return 10 * looked + left;
}
"""


def test_a_function_that_moved_is_asked_for_as_it_was_last_called_by_2_28() -> None:
    assert old_glibc.moved(SYMBOLS) == {
        "libdl.so.2": {"dlmopen": (2, 3, 4)},
        "libpthread.so.0": {"pthread_create": (2, 2, 5)},
        "librt.so.1": {"shm_open": (2, 2, 5)},
    }


def versions(library: Path) -> set[tuple[int, ...]]:
    found = re.findall(r"\(?GLIBC_([\d.]+)\)? ", old_glibc.defined(library))
    return {tuple(map(int, version.split("."))) for version in found}


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not all(map(shutil.which, ("gcc", "g++", "objdump"))),
    reason="needs gcc, glibc",
)
def test_threads_shared_pointers_and_exceptions_work_and_ask_for_nothing_newer(tmp_path: Path) -> None:
    (tmp_path / "library.cpp").write_text(THREADS)
    command = ["g++", "-std=c++20", "-shared", "-fPIC", str(tmp_path / "library.cpp")]
    plain, old = tmp_path / "plain.so", tmp_path / "old.so"
    subprocess.run([*command, "-o", plain], check=True)
    flags = old_glibc.link_flags(tmp_path / "stand_ins").split()
    subprocess.run([*command, *flags, "-ldl", "-lrt", "-lpthread", "-o", old], check=True)
    if tuple(map(int, os.confstr("CS_GNU_LIBC_VERSION").split()[1].split("."))) >= (2, 34):
        assert max(versions(plain)) > old_glibc.NEWEST, "else what follows would show nothing"
    assert max(versions(old)) <= old_glibc.NEWEST
    text = ctypes.create_string_buffer(14)
    assert ctypes.CDLL(str(old)).said(text) == 11
    assert text.value == b"raised in C++"
