"""The demo's data and network: nuclei under the microscope, textures, and a small U-Net.

Data: the labelled nuclei image inside the wheel of ``stardist`` (BSD-3), cut into patches and split by
place; and patches of textures from ``skimage.data``, as inputs the model should not be asked about.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import lightning
import numpy as np
import tifffile
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryF1Score, BinaryJaccardIndex

from selkit.inference import estimate_variance

SIDE = 32  # of a patch, in pixels
BLOCK = 64  # of the checkerboard that separates calibration from test
FOREIGN = ("brick", "grass", "gravel", "cell")

Array = np.ndarray


# --- data -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patches:
    """The demo's data: images ``(n, 1, 32, 32)``, float32, and masks of the same shape, uint8.

    Attributes
    ----------
    train, calibration, test
        Image and mask of the nuclei patches.
    foreign
        For each foreign image its patches.
    variance
        Variance of the camera's noise, in the units of the patches, from background pixels: from their
        second differences, in which what varies slowly cancels.
    """

    train: TensorDataset
    calibration: TensorDataset
    test: TensorDataset
    foreign: dict[str, Tensor]
    variance: float

    def queries(self) -> tuple[TensorDataset, list[str]]:
        """Test and foreign patches together, with the kind of each; a foreign patch holds no nuclei."""
        images, masks = self.test.tensors
        foreign = torch.cat(list(self.foreign.values()))
        kinds = ["nuclei"] * len(images) + [name for name, x in self.foreign.items() for _ in x]
        return TensorDataset(
            torch.cat([images, foreign]), torch.cat([masks, torch.zeros_like(foreign)])
        ), kinds


def read_nuclei() -> tuple[Array, Array]:
    """The nuclei image and its instance masks, read out of stardist's wheel without importing it."""
    spec = find_spec("stardist")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "The demo's image is inside the package stardist: pip install --no-deps stardist==0.9.2"
        )
    folder = Path(spec.origin).parent / "data" / "images"
    return tifffile.imread(folder / "img2d.tif").astype(np.float64), tifffile.imread(folder / "mask2d.tif")


def cut(image: Array, stride: int) -> Tensor:
    """All patches of an image at a stride, ``(n, 1, 32, 32)``, in the image's dtype."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE))[::stride, ::stride]
    return torch.from_numpy(windows.reshape(-1, 1, SIDE, SIDE).copy())


def cut_board(image: Array, parity: int, stride: int) -> Tensor:
    """The patches of every second block of a checkerboard, none of which reaches into another block."""
    rows, columns = image.shape[0] // BLOCK, image.shape[1] // BLOCK
    blocks = [
        image[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        for i in range(rows)
        for j in range(columns)
        if (i + j) % 2 == parity
    ]
    return torch.cat([cut(block, stride) for block in blocks])


def read_foreign(count: int, seed: int = 0) -> dict[str, Tensor]:
    """``count`` patches of each foreign image, each scaled to mean 0 and variance 1 like the nuclei image."""
    from skimage import data

    generator = torch.Generator().manual_seed(seed)
    patches = {}
    for name in FOREIGN:
        every = cut(getattr(data, name)().astype(np.float32), SIDE)
        chosen = every[torch.randperm(len(every), generator=generator)[:count]]
        spread = chosen.std(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)
        patches[name] = (chosen - chosen.mean(dim=(1, 2, 3), keepdim=True)) / spread
    return patches


def make_patches(stride: int = 8, foreign: int = 16) -> Patches:
    """Cut the nuclei image into patches, split by place.

    Parameters
    ----------
    stride
        Between training patches, which overlap.
    foreign
        Number of patches of each foreign image.

    Returns
    -------
    Patches
        Training patches from the left half; calibration and test patches from blocks of the right half that
        alternate like a checkerboard, so that both see the same kind of tissue and share no pixel.
    """
    image, masks = read_nuclei()
    half = image.shape[1] // 2
    mean, spread = image[:, :half].mean(), image[:, :half].std()
    x, y = ((image - mean) / spread).astype(np.float32), (masks > 0).astype(np.uint8)
    return Patches(
        train=TensorDataset(cut(x[:, :half], stride), cut(y[:, :half], stride)),
        calibration=TensorDataset(cut_board(x[:, half:], 0, SIDE // 2), cut_board(y[:, half:], 0, SIDE // 2)),
        test=TensorDataset(cut_board(x[:, half:], 1, SIDE), cut_board(y[:, half:], 1, SIDE)),
        foreign=read_foreign(foreign),
        variance=estimate_variance(x, masks == 0, method="differences"),
    )


# --- model ------------------------------------------------------------------------------------------------


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with a ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


class UNet(LightningModule):
    """A small U-Net: probabilities of nucleus, ``(n, 1, h, w)`` from images ``(n, 1, h, w)``.

    Parameters
    ----------
    channels
        Of the first level; the two levels below have twice and four times as many.
    learning_rate
        Peak of the one-cycle schedule.
    """

    def __init__(self, channels: int = 8, learning_rate: float = 1e-2) -> None:
        super().__init__()
        c = channels
        self.learning_rate = learning_rate
        self.down = nn.ModuleList([convolutions(1, c), convolutions(c, 2 * c), convolutions(2 * c, 4 * c)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(4 * c, 2 * c, 2, 2), nn.ConvTranspose2d(2 * c, c, 2, 2)])
        self.join = nn.ModuleList([convolutions(4 * c, 2 * c), convolutions(2 * c, c)])
        self.head = nn.Conv2d(c, 1, 1)
        self.test_metrics = MetricCollection({"Dice": BinaryF1Score(), "IoU": BinaryJaccardIndex()})

    def levels(self, x: Tensor) -> list[Tensor]:
        """The encoder's feature maps, finest first."""
        first = self.down[0](x)
        second = self.down[1](functional.max_pool2d(first, 2))
        return [first, second, self.down[2](functional.max_pool2d(second, 2))]

    def logits(self, x: Tensor) -> Tensor:
        """Log-odds of nucleus, per pixel."""
        first, second, bottom = self.levels(x)
        second = self.join[0](torch.cat([self.up[0](bottom), second], dim=1))
        return self.head(self.join[1](torch.cat([self.up[1](second), first], dim=1)))

    def forward(self, x: Tensor) -> Tensor:
        """Probability of nucleus, per pixel."""
        return torch.sigmoid(self.logits(x))

    def embed(self, x: Tensor) -> Tensor:
        """Mean and maximum of every feature map of the encoder, ``(n, 14 * channels)``.

        The deepest level alone knows what nuclei look like, but not whether the texture is one that the
        network has seen: that shows in the finer levels.
        """
        levels = self.levels(x)
        return torch.cat(
            [pool(level, (2, 3)) for level in levels for pool in (torch.mean, torch.amax)], dim=1
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy on a batch that is mirrored or turned at random."""
        image, mask = batch
        for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.mT):
            if torch.rand(()) < 0.5:
                image, mask = turn(image), turn(mask)
        return functional.binary_cross_entropy_with_logits(self.logits(image), mask.float())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Dice and intersection over union, without abstention."""
        image, mask = batch
        self.test_metrics.update(self(image), mask)
        self.log_dict(self.test_metrics, on_epoch=True)

    def configure_optimizers(self) -> dict[str, object]:
        """Adam with a one-cycle schedule."""
        optimizer = torch.optim.Adam(self.parameters(), self.learning_rate)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def quiet_trainer(epochs: int = 1) -> Trainer:
    """A trainer on the CPU that writes no files and draws no bars."""
    warnings.filterwarnings("ignore", message=".*(does not have many workers|LeafSpec).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def train_unet(patches: TensorDataset, epochs: int = 8, channels: int = 8, seed: int = 0) -> UNet:
    """Train a :class:`UNet` from a fixed seed; in evaluation mode when it is done."""
    lightning.seed_everything(seed, verbose=False)
    model = UNet(channels)
    loader = DataLoader(patches, batch_size=32, shuffle=True, drop_last=True)
    quiet_trainer(epochs).fit(model, loader)
    return model.eval()


def export_unet(model: nn.Module, path: Path) -> Path:
    """Write the model as ONNX, with any batch size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not there
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, SIDE, SIDE),),
        path,
        input_names=["image"],
        output_names=["probability"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path
