"""``python -m classification.publish``: convert a checkpoint to a model for the Hugging Face Hub.

The model is written to a folder or pushed to the Hub.
"""

from pathlib import Path

from mobile_former.errors import InputError
from mobile_former.training.cli.command import run_command
from mobile_former.training.cli.parser import Parser
from mobile_former.training.processors import limit_threads


def main() -> None:
    """Parse the command line, and convert a checkpoint to a model for the Hugging Face Hub.

    The model is written to a folder or pushed to the Hub.
    """
    parser = Parser(
        prog="python -m classification.publish",
        description="Write a checkpoint as a model for the Hugging Face Hub: config, safetensors and model card.",
    )
    parser.add_argument("--ckpt_path", required=True, help="a run's checkpoints/best.ckpt")
    parser.add_argument("--folder", type=Path | None, default=None, help="folder to write; nothing is pushed")
    parser.add_argument("--repository", type=str | None, default=None, help="repository to push to, owner/name")
    parser.add_argument("--private", type=bool, default=False, help="make a new repository private")
    parser.add_argument("--license", type=str, default="apache-2.0", help="license of the weights, as the Hub names it")
    options = parser.parse_args()
    if (options.folder is None) == (options.repository is None):
        raise InputError("give either --folder, to write the model there, or --repository owner/name, to push it")
    # Imported here, because these modules import PyTorch, which --help need not wait for.
    from classification.predict.classifier import read_classifier
    from mobile_former.ablation import model_label
    from mobile_former.model import MobileFormer
    from mobile_former.weights.usage import Usage

    limit_threads()
    model, hyper_parameters, data_options = read_classifier(options.ckpt_path)
    if not isinstance(model, MobileFormer):
        raise InputError(
            f"{options.ckpt_path} holds {model_label(hyper_parameters)}: publish it with the library of that model"
        )
    usage = Usage(
        class_names=tuple(hyper_parameters["class_names"]),
        **{name: data_options[name] for name in ("image_size", "crop_fraction", "mean", "std")},
    )
    if options.folder:
        model.save_pretrained(options.folder, usage, license=options.license)
        print(f"written: {options.folder}/: config.json, model.safetensors, README.md")
    else:
        address = model.push_to_hub(options.repository, usage, license=options.license, private=options.private or None)
        print(f"pushed: {address}")


if __name__ == "__main__":
    run_command(main)
