"""Mutated slides, made from seeds, and a process that reads them. Run as a script by the test.

    python fuzzkit.py FOLDER FIRST COUNT

prints one line a seed: "SEED pixels" or "SEED ErrorName", and at last the peak memory in MB. Any
other exception than a SlideError ends the process with its trace.
"""

from __future__ import annotations

import resource
import struct
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).parent))

from slidekit import aperio, reduced, tissue, write_dicom, write_pyramid

EXTREMES = (0, 1, 2, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1)


def base_files(folder: Path) -> list[Path]:
    """Sound files of every kind that is read without OpenSlide."""
    image = tissue(300, 260)
    small = reduced(image, 2)
    facts: dict[str, object] = {"MPP": 0.5, "AppMag": 20}
    both = [image, small]
    files = [
        write_pyramid(folder / name, images, tile=128, **options)
        for name, images, options in (
            ("deflate.svs", both, {"compression": "deflate", "facts": facts}),
            ("jpeg.tif", both, {"compression": "jpeg", "photometric": "ycbcr"}),
            ("lzw.tif", [image], {"compression": "lzw", "predictor": True}),
            ("big.tif", both, {"compression": "zstd", "bigtiff": True}),
        )
    ]
    files.append(write_dicom(folder / "wsi.dcm", image))
    strips = folder / "strips.tif"
    tifffile.imwrite(strips, image, rowsperstrip=32, photometric="rgb", metadata=None)
    wavelet = folder / "j2k.svs"
    padded = np.pad(image, ((0, 124), (0, 84), (0, 0)))
    tiles = [
        imagecodecs.jpeg2k_encode(padded[y : y + 128, x : x + 128].copy(), codecformat="j2k")
        for y in (0, 128, 256)
        for x in (0, 128, 256)
    ]
    tifffile.imwrite(
        wavelet, iter(tiles), shape=image.shape, dtype=np.uint8, tile=(128, 128),
        photometric="rgb", compression=33005, metadata=None,
        description=aperio(300, 260, 128, **facts),
    )  # fmt: skip
    ome = folder / "p.ome.tif"
    with tifffile.TiffWriter(ome, ome=True) as file:
        file.write(image, tile=(128, 128), photometric="rgb", subifds=1, metadata={"axes": "YXS"})
        file.write(small, tile=(128, 128), photometric="rgb", subfiletype=1)
    return [*files, strips, wavelet, ome]


def tag_places(data: bytes) -> list[int]:
    """Offsets of the directory entries of a classic little-endian TIFF."""
    if data[:4] != b"II*\0":
        return []
    places = []
    (at,) = struct.unpack_from("<I", data, 4)
    while at and at + 2 <= len(data):
        (count,) = struct.unpack_from("<H", data, at)
        places += [at + 2 + 12 * i for i in range(count)]
        (at,) = struct.unpack_from("<I", data, at + 2 + 12 * count)
    return places


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: flipped bytes, a cut, a zeroed or repeated stretch, corrupted tags."""
    out = bytearray(data)
    kind = rng.integers(0, 6)
    tags = tag_places(data)
    if kind == 0:
        for at in rng.integers(0, len(out), rng.integers(1, 30)):
            out[at] ^= int(rng.integers(1, 256))
    elif kind == 1:
        out = out[: int(rng.integers(0, len(out)))]
    elif kind == 2:
        at, size = int(rng.integers(0, len(out))), int(rng.integers(1, 5000))
        out[at : at + size] = bytes(len(out[at : at + size]))
    elif kind == 3 or not tags:
        for at in rng.integers(0, min(600, len(out) - 4), rng.integers(1, 6)):
            struct.pack_into("<I", out, int(at), int(rng.choice(EXTREMES)))
    else:
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.choice(tags))
            field = int(rng.integers(0, 4))
            if field == 0:
                struct.pack_into("<H", out, at, int(rng.integers(254, 350)))
            elif field == 1:
                struct.pack_into("<H", out, at + 2, int(rng.integers(0, 20)))
            else:
                value = int(rng.choice([*EXTREMES, int(rng.integers(0, len(out)))]))
                struct.pack_into("<I", out, at + 4 * (field - 1), value)
    return bytes(out)


def read_all(path: Path) -> str:
    """Everything a run does with a slide."""
    import wsipipe as wp
    from wsipipe.embed import plan_jobs, read_job
    from wsipipe.errors import SlideError

    try:
        with wp.open_slide(path, mpp=0.5) as slide:
            for level in slide.levels:
                for x, y in ((0, 0), (level.width - 50, level.height - 50)):
                    slide.read_level(level.index, x, y, 100, 100)
            slide.read(3, 5, 64, 64, mpp=0.7)
            if max(slide.dimensions) < 5000:
                slide.thumbnail(8)
            for mpp in (0.5, 0.93):
                grid = wp.make_grid(slide, None, tile_px=64, mpp=mpp)
                for job in plan_jobs(slide, grid, max_tiles=32)[:2]:
                    read_job(slide, grid, job)
    except SlideError as error:
        return type(error).__name__
    return "pixels"


def _peak_mb() -> int:
    """Of this program alone: `ru_maxrss` also holds what the parent had before exec."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (
            20 if sys.platform == "darwin" else 10
        )
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def main() -> None:
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))
    files = base_files(folder)
    contents = [path.read_bytes() for path in files]
    (folder / "m").mkdir()
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        which = seed % len(files)
        victim = folder / "m" / f"victim{files[which].suffix}"
        victim.write_bytes(mutate(contents[which], rng))
        print(f"{seed} ...", flush=True)
        print(f"{seed} {read_all(victim)}", flush=True)
        victim.unlink()
    print("peak", _peak_mb(), flush=True)


if __name__ == "__main__":
    main()
