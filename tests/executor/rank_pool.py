"""Runs plan after plan, a forked process for each rank: torch is imported once.

A line on stdin is {"world_size", "words"}: how many ranks, and their command line; the answer is their exit codes.
"""

import json
import os
import sys
import traceback

import torch._dynamo  # noqa: F401  # which recomputation imports when it is first used

import hetsched.executor.train  # noqa: F401  # all before the first fork
from hetsched.executor.__main__ import main


def start(rank: int, world_size: int, words: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(world_size)
    code = 70  # of an error that main does not know, whose traceback is shown
    try:
        code = main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")  # stdout itself is where a rank writes its steps
    os.dup2(2, 1)
    for line in sys.stdin:
        run = json.loads(line)
        children = [start(rank, run["world_size"], run["words"]) for rank in range(run["world_size"])]
        answers.write(f"{[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]}\n")
        answers.flush()
