"""A small Ray of a test's own: `python -m tests.ray.cluster FOLDER` gives its address, and ends with its input."""

import sys

import ray


def main(folder: str) -> None:
    context = ray.init(
        address="local", num_cpus=4, include_dashboard=False, object_store_memory=200_000_000, _temp_dir=folder
    )
    sys.stdout.write(context.address_info["gcs_address"] + "\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
