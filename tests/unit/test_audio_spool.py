"""Files of a request are gone with it, whatever happens; threads for sound stop when nobody waits for them."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from core.audio.spool import Spool, sweep
from core.audio.threads import AudioThreads, stop_asked
from domain.errors import TooLarge, Unavailable

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.anyio


async def test_what_is_written_is_there_until_the_request_ends(tmp_path: Path) -> None:
    async with Spool(tmp_path / "uploads", 10_000_000) as spool:
        for _ in range(30):
            await spool.write(b"x" * 100_000)
        upload = await spool.upload("speech.wav")
        assert (upload.size, upload.path.stat().st_size, upload.name) == (3_000_000, 3_000_000, "speech.wav")
        assert spool.folder.stat().st_mode & 0o777 == 0o700
        (spool.folder / "more").write_bytes(b"y")
    assert _left(tmp_path / "uploads") == []


async def test_most_of_it_is_on_disk_before_the_end(tmp_path: Path) -> None:
    async with Spool(tmp_path, 10_000_000) as spool:
        await spool.write(b"x" * 3_000_000)
        assert spool.path.stat().st_size == 3_000_000


async def test_one_byte_too_many_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    async with Spool(tmp_path, 1_000) as spool:
        await spool.write(b"x" * 1_000)
        with pytest.raises(TooLarge) as caught:
            await spool.write(b"x")
    assert caught.value.code == "file_too_large"
    assert _left(tmp_path) == []


async def test_a_cancelled_request_leaves_nothing(tmp_path: Path) -> None:
    written = asyncio.Event()

    async def request() -> None:
        async with Spool(tmp_path, 10_000_000) as spool:
            await spool.write(b"x" * 2_000_000)
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await written.wait()
    assert _left(tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert _left(tmp_path) == []


async def test_a_request_that_is_cancelled_at_any_moment_leaves_nothing(tmp_path: Path) -> None:
    async def request() -> None:
        async with Spool(tmp_path, 100_000_000) as spool:
            for _ in range(20):
                await spool.write(b"x" * 1_100_000)

    for turns in range(40):
        task = asyncio.create_task(request())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
    assert _left(tmp_path) == []


async def test_a_full_disk_is_said(tmp_path: Path) -> None:
    program = """
        import asyncio, os, resource, sys
        from pathlib import Path
        from core.audio.spool import Spool
        from domain.errors import Unavailable
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))  # the disk takes no more than that
        async def main():
            async with Spool(Path(sys.argv[1]), 10_000_000) as spool:
                try:
                    await spool.write(b"x" * 1_100_000)
                    await spool.write(b"x" * 1_100_000)
                except Unavailable as error:
                    print(error.code)
            print(os.listdir(sys.argv[1]))
        asyncio.run(main())
    """
    assert _in_a_process_of_its_own(program, tmp_path).split() == ["storage_full", "[]"]


async def test_a_folder_that_cannot_be_made_is_said_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file")
    with pytest.raises(Unavailable) as caught:
        async with Spool(tmp_path / "uploads", 1):
            pass
    assert str(tmp_path) not in caught.value.message


def _left(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _in_a_process_of_its_own(program: str, folder: Path) -> str:
    command = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _aged(folder: Path, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(folder, (then, then))


async def test_leftovers_of_the_dead_are_swept_after_a_day(tmp_path: Path) -> None:
    program = """
        import asyncio, os, sys
        from pathlib import Path
        from core.audio.spool import Spool
        async def main():
            async with Spool(Path(sys.argv[1]), 10):
                os._exit(0)
        asyncio.run(main())
    """
    for _ in range(2):
        _in_a_process_of_its_own(program, tmp_path)
    old, young = _left(tmp_path)
    _aged(old, 1.1)
    _aged(young, 0.9)
    async with Spool(tmp_path, 10) as spool:
        _aged(spool.folder, 3)
        assert sweep(tmp_path) == 1
        assert spool.path.exists(), "it is old, and its process lives"
    assert _left(tmp_path) == [young]


async def test_a_house_that_was_never_sent_anything_has_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path / "uploads") == 0


# -- threads --


async def test_cancelling_stops_the_work_and_waits_for_it() -> None:
    threads, started, ended = AudioThreads(1), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        while not stop_asked():
            time.sleep(0.001)
        ended.set()

    task = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(started.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    assert await threads.run(stop_asked) is False, "the next work on that thread goes on"
    await threads.close()


async def test_work_that_is_cancelled_in_the_line_is_never_begun_nor_waited_for() -> None:
    threads, free, begun = AudioThreads(1), threading.Event(), []
    first = asyncio.create_task(threads.run(free.wait, 10))
    second = asyncio.create_task(threads.run(begun.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(second, 2)
    assert not first.done(), "the thread was never free"
    free.set()
    assert await first
    assert begun == []
    await threads.close()


async def test_who_stands_in_the_line_of_a_house_that_closes_is_told_so() -> None:
    threads, free = AudioThreads(1), threading.Event()
    first = asyncio.create_task(threads.run(free.wait, 10))
    second = asyncio.create_task(threads.run(free.wait, 10))
    await asyncio.sleep(0)
    await threads.close()
    with pytest.raises(Unavailable):
        await second
    with pytest.raises(Unavailable):
        await threads.run(free.wait, 10)
    free.set()
    assert await first


async def test_a_failure_in_the_thread_reaches_who_waits() -> None:
    threads = AudioThreads(1)

    def work() -> None:
        raise TooLarge("so large")

    with pytest.raises(TooLarge, match="so large"):
        await threads.run(work)
    await threads.close()


async def test_closing_stops_what_runs() -> None:
    threads, started = AudioThreads(1), threading.Event()

    def work() -> bool:
        started.set()
        while not stop_asked():
            time.sleep(0.001)
        return True

    task = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(started.wait, 5)
    await threads.close()
    assert await task
