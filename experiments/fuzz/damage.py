"""Functions that make damaged and hostile files of every kind that the commands read.

Each function takes a random generator and uses it for all random choices. The code in hostile files is harmless: it
only creates a file or folder ``canary`` in the working folder, or sets the environment variable ``canary``.
"""

import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule
from safetensors.torch import save
from sklearn.datasets import load_sample_images

import classification
import detection
from classification.data.module import ClassificationData
from classification.module import ClassificationModule
from detection.data.module import DetectionData
from detection.module import DetectionModule
from mobile_former.model import MobileFormer

CANARY = "canary"
LAYOUT = Path(__file__).parents[2] / "tests" / "reference" / "mobile_former_26m.json"  # tensors of authors' checkpoints
IMAGES = {1: (64, 48), 2: (40, 60), 7: (33, 33)}  # width and height of the COCO data set's images by id


class File(NamedTuple):
    """The name of a file, and its content as bytes."""

    name: str
    data: bytes


# Bytes


def damaged(data: bytes, random: Random) -> bytes:
    """Return a damaged copy of the content of a file.

    At random, bits are flipped, segments are overwritten, inserted, copied or deleted, the end is cut off, or bytes are
    set to extreme values.
    """
    content = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5, 30))):
        # Mostly in the first bytes, where damage has the largest effect.
        at = random.randrange(max(1, min(len(content), random.choice((64, 1024, len(content))))))
        length = random.choice((1, 2, 4, 8, random.randrange(1, 200)))
        match random.choice(("flip", "flip", "overwrite", "huge", "cut", "delete", "insert", "splice")):
            case "flip" if content:
                content[at] ^= 1 << random.randrange(8)
            case "overwrite":
                content[at : at + length] = random.randbytes(length)
            case "huge":
                content[at : at + length] = random.choice((b"\xff", b"\x00", b"\x7f")) * length
            case "cut":
                del content[random.randrange(at, len(content) + 1) :]
            case "delete":
                del content[at : at + length]
            case "insert":
                content[at:at] = random.randbytes(length)
            case "splice":
                start = random.randrange(len(content) + 1)
                content[at:at] = content[start : start + length * 10]
    return bytes(content)


# Images


def image(random: Random) -> File:
    """Make a damaged or unusual image file, and return it as a :class:`File`.

    At random, it has damaged bytes, noise, a wrong size in the header, an extreme shape or odd EXIF data.
    """
    name = random.choice(list(_images()))
    data = _images()[name]
    match random.choice(("damage", "damage", "damage", "noise", "size", "exif", "long")):
        case "damage":
            data = damaged(data, random)
        case "noise":
            start = random.choice((b"", data[: random.randrange(1, 40)]))
            data = start + random.randbytes(random.choice((0, 1, 10, 1000, 20_000)))
        case "size":
            width, height = (random.choice((0, 1, 65_500, 10_000, 100_000, 2**31 - 1, 2**32 - 1)) for _ in range(2))
            if random.random() < 0.5:
                name, data = "declared.png", _png(width, height, data=zlib.compress(bytes(random.choice((0, 10_000)))))
            else:
                name, data = "declared.jpg", _declared_jpeg(min(width, 65_535), min(height, 65_535), random)
        case "exif":
            name, data = "exif.jpg", _with_exif(random)
        case "long":
            sides = [random.choice((1, 2, 3)), random.choice((1, 1_000, 30_000, 200_000))]
            random.shuffle(sides)
            name, data = "long.png", _png(*sides, zlib.compress(bytes((3 * sides[0] + 1) * sides[1])))
    return File(name, data)


@cache
def _images() -> dict[str, bytes]:
    """Return a small photograph in many image formats, as a dictionary from file name to bytes."""
    photograph = Image.fromarray(load_sample_images().images[0]).resize((120, 91))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "baseline.jpg": (photograph, "JPEG", {"quality": 90}),
        "progressive.jpg": (photograph, "JPEG", {"progressive": True}),
        "restarts.jpg": (photograph, "JPEG", {"restart_marker_blocks": 4}),
        "grey.jpg": (photograph.convert("L"), "JPEG", {}),
        "cmyk.jpg": (photograph.convert("CMYK"), "JPEG", {}),
        "turned.jpg": (photograph, "JPEG", {"exif": exif}),
        "rgb.png": (photograph, "PNG", {}),
        "palette.png": (photograph.quantize(16), "PNG", {"transparency": 3}),
        "alpha.png": (photograph.convert("RGBA"), "PNG", {"exif": exif}),
        "deep.png": (Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257), "PNG", {}),
        "bilevel.png": (photograph.convert("1"), "PNG", {}),
        "lossy.webp": (photograph, "WEBP", {"exif": exif}),
        "lzw.tiff": (photograph, "TIFF", {"compression": "tiff_lzw"}),
        "raw.tiff": (photograph, "TIFF", {}),
        "palette.gif": (photograph.quantize(64), "GIF", {}),
        "rgb.bmp": (photograph, "BMP", {}),
        "rgb.ppm": (photograph, "PPM", {}),
    }
    files = {}
    for name, (picture, kind, options) in kinds.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files[name] = file.getvalue()
    return files


def _png(width: int, height: int, data: bytes) -> bytes:
    """Return the bytes of a PNG file with valid checksums.

    Args:
        width: width in the header. The image data may have another width.
        height: height in the header. The image data may have another height.
        data: compressed image data.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _declared_jpeg(width: int, height: int, random: Random) -> bytes:
    data = _images()[random.choice(("baseline.jpg", "progressive.jpg", "grey.jpg"))]
    frame = re.search(rb"\xff[\xc0\xc2]..", data, re.DOTALL).start()
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def _with_exif(random: Random) -> bytes:
    """Return the bytes of a JPEG file with random content in the APP1 segment, which usually contains the EXIF data."""
    data = _images()["baseline.jpg"]
    order = random.choice("<>")
    entries = [
        struct.pack(
            f"{order}HHI4s",
            random.choice((0x0112, 0x0112, 0x8769, 0x8825, 0x0201, random.randrange(2**16))),
            random.randrange(16),
            random.choice((0, 1, 1, 4, 2**16, 2**32 - 1)),
            random.choice((struct.pack(f"{order}HH", random.randrange(12), 0), b"\0\0\0\x08", random.randbytes(4))),
        )
        for _ in range(random.randrange(6))
    ]
    count = struct.pack(f"{order}H", random.choice((len(entries), 65_535)))
    start = random.choice((8, 8, 8, 0, 4, 2**32 - 1))
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start) + count + b"".join(entries)
    kind = random.choice((b"Exif\0\0", b"Exif\0\0", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b""))
    segment = kind + random.choice((tiff, tiff, tiff + tiff, random.randbytes(60)))
    declared = random.choice((len(segment) + 2,) * 4 + (0, 2, 65_535))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", declared) + segment + data[2:]


# Unexpected values


def odd_value(random: Random) -> Any:
    """Return a random value that is unexpected in a JSON or YAML file, such as NaN or a very long string."""
    nested: Any = []
    for _ in range(random.choice((3, 100))):
        nested = [nested]
    return random.choice(
        [
            None, True, False, 0, -1, 1, 0.5, 1e-320, 1e308, -1e308, 2**31, 2**63, -(2**63), 2**64, 10**400,
            float("nan"), float("inf"), -float("inf"), "", "1", "12", "0", "nan", "true", "x" * 3_000, "a\0b", "\ud800",
            "../../../etc/passwd", "/dev/zero", "~", "${PATH}", "é 猫", [], {}, [1, 2, 3, 4], ["1", "2", "3", "4"],
            [None] * 4, [1e308] * 4, [0, 0, 1e308, 1e308], [-1e9, -1e9, 2e9, 2e9], [float("nan")] * 4, [10**400] * 4,
            list(range(5_000)), {"id": 1}, {"class_path": "os.system", "init_args": {"command": "touch canary"}},
            nested,
        ]
    )  # fmt: skip


def change(content: Any, random: Random) -> Any:
    """Change one random entry of nested lists and dictionaries in place.

    At random, the entry is removed, it is replaced by an unexpected value or by a copy of another entry, or a new entry
    is added beside it.

    Args:
        content: nested lists and dictionaries.
        random: random generator.

    Returns:
        The changed ``content``.
    """
    places = list(_places(content))
    if not places:
        return content
    holder, key = random.choice(places)
    match random.choice(("replace", "replace", "replace", "remove", "copy", "add")):
        case "replace":
            holder[key] = odd_value(random)
        case "remove":
            del holder[key]
        case "copy":
            other, name = random.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = deepcopy(other[name])
        case "add" if isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), deepcopy(random.choice((holder[key], odd_value(random)))))
        case "add":
            holder[random.choice(("x", "id", "name", "init_args", "class_path", "a.b"))] = odd_value(random)
    return content


def _places(content: Any):
    for key in content if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])


# Configs


def config(random: Random) -> File:
    """Make a training config with damaged text, odd values or hostile YAML, and return it as a :class:`File`.

    It is a config of classification or detection, chosen at random.
    """
    name, text = random.choice(list(_configs().items()))
    match random.choice(("text", "values", "values", "values", "abuse")):
        case "text":
            data = damaged(text.encode(), random)
        case "values":
            content = yaml.safe_load(text)
            for _ in range(random.choice((1, 1, 2, 4))):
                change(content, random)
            data = yaml.dump(content, allow_unicode=True).encode(errors="surrogatepass")
        case "abuse":
            data = (random.choice((text, "")) + random.choice(_YAML_ABUSE)).encode()
    return File(f"{name}.yaml", data)


@cache
def _configs() -> dict[str, str]:
    """Return the texts of training configs of both tasks. The models are replaced by the smallest of their family.

    Returns:
        Dictionary from task and config name, such as ``classification-digits``, to the text of the config.
    """
    names = {
        classification: ("digits", "finetune", "imagenet_26m"),
        detection: ("scenes", "finetune", "bccd", "coco_e2e_mf_294m", "coco_retinanet_mf_294m"),
    }
    paths = [Path(task.__file__).parent / "configs" / f"{name}.yaml" for task in names for name in names[task]]
    smallest = partial(re.sub, r"(mobile_former|e2e_mf|retinanet_mf)_\w+m\b", r"\1_26m")
    return {f"{path.parents[1].name}-{path.stem}": smallest(path.read_text()) for path in paths}


_YAML_ABUSE = (
    '\nx: !!python/object/apply:os.system ["touch canary"]\n',
    '\nmodel: !!python/object/new:os.system ["touch canary"]\n',
    "\nname: !!python/object/apply:builtins.eval [\"open('canary', 'w')\"]\n",
    "\nmodel: !!python/name:os.system\n",
    "\ndata: !!python/module:os\n",
    "\nmodel: &a {name: *a}\n",
    "\ndata: {train_transforms: &a [*a]}\n",
    "\nname: &a [*a]\n",
    "\nname: " + "[" * 200 + "]" * 200 + "\n",
    "\nname: " + "[" * 5_000 + "]" * 5_000 + "\n",
    "\nname: " + "{a: " * 5_000 + "}" * 5_000 + "\n",
    "\n"
    + "\n".join(["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)] + ["name: *a39"]),
    "\nname: 1\nname: 2\n",
    "\n<<: {name: x}\n",
    "\n? [1, 2]\n: 3\n",
    "\n1: 2\n",
    "\nnull: 2\n",
    "\nname: 0x" + "f" * 6_000 + "\n",
    "\nname: 1" + "0" * 6_000 + "\n",
    "\nname: 9999-99-99\n",
    "\nname: 2020-01-01T99:99:99\n",
    "\nname: 1:99:99:99\n",
    "\nname: !!binary x\n",
    "\nname: !!float x\n",
    "\nname: !!int x\n",
    "\nname: !!set {a, b}\n",
    "\nname: !!timestamp x\n",
    "\n--- 1\n--- 2\n",
    "\n%YAML 9.9\n---\nname: x\n",
    "\nname: \x00\n",
    "\n\tname: x\n",
    "\ufeffname: x\n",
    "\nconfig: itself.yaml\n",
    "\nckpt_path: /dev/zero\n",
    "\nprint_config: x\n",
    "\nhelp: true\n",
    "\nseed_everything: -1\n",
    "\nseed_everything: 99999999999999999999\n",
    "\ntrainer: {callbacks: [{class_path: os.system, init_args: {command: touch canary}}]}\n",
    "\ndata: {train_transforms: [{class_path: os.system, init_args: {command: touch canary}}]}\n",
    "\ndata: {train_transforms: [{class_path: builtins.exec, dict_kwargs: {source: \"open('canary', 'w')\"}}]}\n",
    "\ndata: {train_transforms: [{class_path: subprocess.Popen, init_args: {args: [touch, canary]}}]}\n",
    "\ndata: {train_transforms: [{class_path: albumentations.Resize, init_args: {height: x, width: -1}}]}\n",
    "\ndata: {train_transforms: [{class_path: albumentations.Compose, init_args: {transforms: [1]}}]}\n",
    "\ndata: {train_transforms: [{class_path: albumentations.Nothing}]}\n",
    "\ndata: {train_transforms: [{class_path: ..a}]}\n",
    "\ndata: {train_transforms: [{class_path: ''}]}\n",
    "\nmodel: {class_path: os.system, init_args: {command: touch canary}}\n",
    "\nmodel: {pretrained: /dev/zero}\n",
    "\nmodel: {name: ../../x}\n",
    "\nmodel: {name: timm/../../x}\n",
    "\nmodel: other.yaml\n",
    "\ndata: /dev/null\n",
    "\ntrainer: null\n",
)


# COCO


def coco(random: Random) -> File:
    """Make a damaged COCO annotation file, and return it as a :class:`File`.

    It has damaged text, odd values, unknown ids, degenerate boxes or deep nesting.
    """
    content = _coco(random)
    match random.choice(("values", "values", "values", "values", "text", "nested")):
        case "values":
            for _ in range(random.choice((1, 1, 1, 2, 5))):
                if isinstance(content, dict | list):
                    change(content, random)
            data = json.dumps(content).encode()
        case "text":
            data = damaged(json.dumps(content).encode(), random)
        case "nested":
            depth = random.choice((500, 100_000))
            nested = random.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
            place = random.choice(('"area": 1', '"images"', "64"))
            data = json.dumps(content).replace(place, f'"x": {nested}, {place}' if '"' in place else nested, 1).encode()
    return File("instances.json", data)


def write_coco_images(folder: Path) -> None:
    """Write the image files to which the annotation files from :func:`coco` refer."""
    folder.mkdir(exist_ok=True)
    for number, size in IMAGES.items():
        Image.new("RGB", size, (number * 30, 90, 120)).save(folder / f"{number}.png")


def _coco(random: Random) -> dict[str, list]:
    boxes = [[random.uniform(-5, 60), random.uniform(-5, 60), random.choice((0, 5, 30)), 20.5] for _ in range(5)]
    return {
        "info": {"description": "x"},
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
            for number, (width, height) in IMAGES.items()
        ],
        "annotations": [
            {
                "id": number,
                "image_id": random.choice(list(IMAGES)),
                "category_id": random.choice((3, 9)),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": random.choice((0, 0, 1)),
                "segmentation": [[0, 0, 5, 5, 0, 5]],
            }
            for number, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
    }


# Weights


def weights(random: Random) -> File:
    """Make a damaged or hostile weights file or checkpoint, and return it as a :class:`File`.

    It has damaged bytes or structure, unexpected tensors, a wrong safetensors header, or a pickle that runs code.
    """
    name = random.choice(list(_states()))
    content = _copied_structure(_states()[name])
    how = random.choice(("bytes", "bytes", "structure", "structure", "tensors", "tensors", "code", "header"))
    if how == "structure":
        for _ in range(random.choice((1, 1, 3))):
            change(content, random)
    if how == "tensors":
        state = content.get("state_dict", content)
        for key in random.sample(list(state), random.choice((1, 1, 5))):
            state[key] = _odd_tensor(state[key], random)
    if how == "code":
        return File(f"{name}.pth", _attack(content, random))
    if how == "header":
        return File("header.safetensors", _safetensors(random))
    if how != "structure" and random.random() < 0.15:
        return File(f"{name}.safetensors", _few_as_safetensors(content, random))
    data = _saved(content, pickle, as_zip=random.random() < 0.6)
    if how == "bytes":
        data = damaged(data, random)
    return File(f"{name}.pth", data)


@cache
def _states() -> dict[str, dict]:
    """Return an undamaged example of each kind of weights dictionary or checkpoint that the commands read.

    Returns:
        Dictionary from the name of the kind to the example. All tensors come from :func:`_repeated`.
    """
    classifier = ClassificationModule(["cat", "dog"], name="mobile_former_26m")
    detector = DetectionModule(["cat", "dog"], name="e2e_mf_26m", category_ids=[3, 9])
    scenes = DetectionData(root="x", short_sides=(64,), short_side=64, longest=128)
    with torch.device("meta"):
        state = MobileFormer("mobile_former_26m", num_classes=2).state_dict()
    authors = {name: torch.empty(shape, device="meta") for name, shape in json.loads(LAYOUT.read_text())["state_dict"]}
    return {
        "file": _repeated(state),
        "wrapped": {"state_dict": _repeated(state), "state_dict_ema": {}, "best": 1.0},
        "authors": _repeated(authors),
        "detector": _repeated(detector.model.state_dict()),
        "classification-checkpoint": _checkpoint(classifier, ClassificationData(root="x")),
        "detection-checkpoint": _checkpoint(detector, scenes),
    }


def _checkpoint(module: LightningModule, data: LightningDataModule) -> dict[str, Any]:
    """Return a dictionary with the keys of a checkpoint of ``module`` and ``data``. All weights are zero."""
    return {
        "state_dict": _repeated(module.state_dict()),
        "hyper_parameters": dict(module.hparams),
        "datamodule_hyper_parameters": dict(data.hparams),
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "2.6.0",
    }


def _repeated(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a dictionary of zero tensors with the names, shapes and data types of the tensors in ``state``.

    To save memory, all tensors of one data type are expanded views of the same single element.
    """
    numbers = {dtype: torch.zeros((), dtype=dtype) for dtype in {tensor.dtype for tensor in state.values()}}
    return {name: numbers[tensor.dtype].expand(tensor.shape) for name, tensor in state.items()}


def _copied_structure(content: Any) -> Any:
    """Copy nested lists and dictionaries, but not the tensors in them."""
    if isinstance(content, dict):
        return {key: _copied_structure(value) for key, value in content.items()}
    return list(map(_copied_structure, content)) if isinstance(content, list) else content


def _odd_tensor(tensor: torch.Tensor, random: Random) -> Any:
    """Return an unexpected replacement for a tensor, usually a tensor of another data type, layout or shape."""
    kinds: list[Callable[[], Any]] = [
        lambda: tensor.to(torch.complex64),
        lambda: tensor.bool(),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to(torch.float64) + float("nan"),
        lambda: torch.empty_like(tensor, device="meta"),
        lambda: torch.zeros(tensor.shape).to_sparse(),
        lambda: torch.nn.Parameter(torch.zeros(tensor.shape)),
        lambda: torch.quantize_per_tensor(torch.zeros(tensor.shape), 0.1, 0, torch.qint8),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0),
        lambda: torch.zeros(()).expand((*tensor.shape, 1)),
        lambda: torch.zeros(()).expand(tuple(reversed(tensor.shape))),
        lambda: torch.zeros(()).expand((2**20, 2**20)),
        lambda: torch.zeros(()).expand((7, *tensor.shape[1:])),
        lambda: odd_value(random),
        lambda: np.float64(1),
        lambda: OrderedDict(weight=tensor),
    ]
    return random.choice(kinds)()


class _Call:
    """A function call to write into a pickle.

    Args:
        module: name of the function's module.
        name: name of the function in the module.
        arguments: positional arguments of the call.
    """

    def __init__(self, module: str, name: str, *arguments: Any):
        self.module, self.name, self.arguments = module, name, arguments


class _Pickler(pickle._Pickler):
    """Python's pickler, extended to write a :class:`_Call` without importing its function."""

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, _Call):
            return super().save(obj, save_persistent_id)
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        super().save(obj.arguments)
        self.write(pickle.REDUCE)


_TOUCH = "touch canary"
_OPEN = "open('canary', 'w')"
_SYSTEM = _Call("builtins", "getattr", _Call("builtins", "__import__", "os"), "system")
_CALLS = (
    _Call("os", "system", _TOUCH),
    _Call("posix", "system", _TOUCH),
    _Call("subprocess", "getoutput", _TOUCH),
    _Call("subprocess", "Popen", ["touch", "canary"]),
    _Call("builtins", "eval", _OPEN),
    _Call("builtins", "exec", _OPEN),
    _Call("__builtin__", "eval", _OPEN),
    _Call("builtins", "open", "canary", "w"),
    _Call("io", "open", "canary", "w"),
    _Call("os", "putenv", "canary", "1"),
    _Call("os", "environ.__setitem__", "canary", "1"),
    _Call("os", "mkdir", "canary"),
    _Call("pathlib", "Path.touch", "canary"),
    _SYSTEM,
    _Call("operator", "methodcaller", "system", _TOUCH),
    _Call("functools", "partial", _SYSTEM, _TOUCH),
    _Call("runpy", "_run_code", _OPEN, {}),
    _Call("timeit", "timeit", _OPEN),
    _Call("code", "InteractiveInterpreter.runcode", _OPEN),
    _Call("torch", "load", "canary.pt"),
    _Call("torch.hub", "load", "x/y", "z"),
    _Call("torch.utils.cpp_extension", "load_inline", "x", _OPEN),
    _Call("torch.storage", "_load_from_bytes", pickle.dumps(1)),
    _Call("torch._utils", "_rebuild_tensor_v2", None, 0, (2,), (1,), False, None),
    _Call("torch._utils", "_rebuild_sparse_tensor", 1, 2),
    _Call("torch._utils", "_rebuild_parameter", 1, 2, 3),
    _Call("torch._tensor", "_rebuild_from_type_v2", eval, int, (), {}),
    _Call("torch", "Size", [2**62, -1]),
    _Call("torch", "device", "cuda:99"),
    _Call("torch", "FloatStorage", 2**60),
    _Call("collections", "Counter", {"a": "b"}),
    _Call("collections", "OrderedDict", [1]),
    _Call("_codecs", "encode", "x", "rot13"),
    _Call("_codecs", "encode", "x" * 50, "hex"),
    _Call("builtins", "bytearray", 2**45),
    _Call("numpy", "load", "canary"),
    _Call("numpy", "dtype", "O"),
    _Call("numpy", "dtype", {"names": ["a"], "formats": ["O"]}),
    _Call("numpy", "dtype", "V" + "9" * 30),
    _Call("numpy._core.multiarray", "scalar", _Call("numpy", "dtype", "O"), b"x" * 8),
    _Call("numpy._core.multiarray", "scalar", _Call("numpy", "dtype", {"names": ["a"], "formats": ["O"]}), b"x" * 8),
    _Call("numpy._core.multiarray", "scalar", _Call("numpy", "dtype", "f8"), b"x"),
    _Call("numpy._core.multiarray", "scalar", _Call("numpy", "dtype", "f8")),
    _Call("numpy.core.multiarray", "scalar", 1, 2),
    _Call("numpy._core.multiarray", "_reconstruct", 1, (0,), b"b"),
    _Call("argparse", "Namespace", 1),
    _Call("argparse", "FileType", "w"),
)


def _attack(content: dict, random: Random) -> bytes:
    """Return the bytes of a file with a pickle that calls a function when it is loaded.

    The file is a plain pickle, a zip file of plain pickles, or the output of ``torch.save`` in one of its two layouts.

    Args:
        content: dictionary of a weights file or checkpoint. The output of ``torch.save`` may contain its entries. It
            may be changed in place.
        random: random generator.
    """
    call = random.choice(_CALLS)
    match random.randrange(4):
        case 0:
            content = call
        case 1:
            content["x"] = [call]
        case 2:
            content[random.choice(list(content))] = call
        case 3:
            content = {call: 1, **content}
    module = type("attack", (), {"Pickler": _Pickler, "dump": _dump, "dumps": pickle.dumps, "__name__": "attack"})
    kind = random.randrange(3)
    if kind < 2:
        return _saved(content, module, as_zip=bool(kind))
    file = io.BytesIO()
    _dump(call, file, protocol=2)  # a bare pickle, or one in a plain zip file
    if random.random() < 0.5:
        return file.getvalue()
    archive = io.BytesIO()
    compression = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    members = dict.fromkeys(("data.pkl", "constants.pkl", "code/x.py"), file.getvalue())
    members |= {"version": b"3\n", "byteorder": b"little", "data/0": bytes(random.choice((4, 20_000_000)))}
    with zipfile.ZipFile(archive, "w") as opened:
        for name, member in members.items():
            opened.writestr(zipfile.ZipInfo(f"archive/{name}"), member, compression)  # without the current date
    return archive.getvalue()


def _saved(content: Any, pickle_module: Any, *, as_zip: bool) -> bytes:
    """Return the bytes that ``torch.save`` writes for ``content``, in the zip layout or in torch's older layout.

    The older layout contains the memory addresses of the tensors. Because addresses change from run to run, they are
    replaced by the numbers 0, 1, 2, …. The order of the tensors still depends on the addresses.

    Args:
        content: object to save.
        pickle_module: module that ``torch.save`` uses to pickle ``content``.
        as_zip: whether to use the zip layout.
    """
    file = io.BytesIO()
    torch.save(content, file, pickle_module=pickle_module, _use_new_zipfile_serialization=as_zip)
    if as_zip:
        return file.getvalue()
    numbers: dict[bytes, bytes] = {}

    def numbered(found: re.Match) -> bytes:
        number = numbers.setdefault(found[1], b"%d" % len(numbers))
        return b"X" + struct.pack("<I", len(number)) + number

    return re.sub(rb"X[\x0a-\x10]\0\0\0(\d{10,16})", numbered, file.getvalue())


def _dump(content: Any, file: Any, protocol: int) -> None:
    _Pickler(file, protocol).dump(content)


def _few_as_safetensors(content: dict, random: Random) -> bytes:
    """Return the bytes of a safetensors file with up to nine small tensors of zeros. At random, it is damaged.

    Args:
        content: dictionary of a weights file or checkpoint, from which the names and shapes are taken.
        random: random generator.
    """
    state = content.get("state_dict", content)
    chosen = sorted(name for name in state if isinstance(state[name], torch.Tensor) and state[name].numel() < 10_000)
    data = save({name: torch.zeros(state[name].shape) for name in random.sample(chosen, min(9, len(chosen)))})
    return damaged(data, random) if random.random() < 0.7 else data


def _safetensors(random: Random) -> bytes:
    """Return the bytes of a safetensors file whose header is usually wrong."""
    shape, size = random.choice((([2, 2], 16), ([2**40], 2**42), ([2**32, 2**32], 2**63), ([-1], 4), ([], 4), ([0], 0)))
    start = random.choice((0, 0, 0, 8, -8, 2**63, 2**64 - 8))
    entry = {"dtype": random.choice(("F32", "F32", "F64", "BF16", "F8_E5M2", "X")), "shape": shape}
    entry["data_offsets"] = random.choice(([start, start + size], [size, start], [start], [2**70, 2**71]))
    header: dict[str, Any] = {"backbone.tokens": entry, "__metadata__": random.choice(({}, {"a": "b"}, {"a": 1}, []))}
    match random.randrange(4):
        case 0:
            change(header, random)
        case 1:
            header |= {f"x{number}": entry for number in range(random.choice((1, 5_000)))}
    text = json.dumps(header)
    if random.random() < 0.1:
        text = text.replace("16", "[" * 100_000, 1)
    declared = random.choice((len(text),) * 6 + (0, 2**20, 100_000_000, 2**40, 2**63, 2**64 - 1))
    return struct.pack("<Q", declared) + text.encode() + bytes(random.choice((0, 16, 16, 1000)))
