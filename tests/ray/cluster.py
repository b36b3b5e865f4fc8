"""Runs a small Ray cluster: `python -m tests.ray.cluster FOLDER` prints its address and runs until stdin closes."""

import sys

import ray


def main(folder: str) -> None:
    context = ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,  # not real ones
        include_dashboard=False,
        object_store_memory=200_000_000,
        _temp_dir=folder,
    )
    sys.stdout.write(context.address_info["gcs_address"] + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
