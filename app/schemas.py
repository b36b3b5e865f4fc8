"""The JSON that the server sends, as OpenAPI documents it. Independent of the server, so that the client can use it."""

from pydantic import BaseModel, Field

from model.skeleton import Skeleton


class Arrangement(BaseModel):
    """How a model is run: `instances` concurrent batches of up to `max_batch` images, on `threads` CPU threads each."""

    instances: int = Field(examples=[2])
    threads: int = Field(examples=[1])
    max_batch: int = Field(examples=[4])
    images_per_second: float | None = Field(None, description="measured throughput; null if nothing had to be measured")

    @property
    def session_threads(self) -> int | None:
        """The thread count to pass to `Detector.infer`; None for a single instance, which has all threads."""
        return self.threads if self.instances > 1 else None


class Size(BaseModel):
    """An upright image's size in pixels."""

    width: int = Field(examples=[640])
    height: int = Field(examples=[480])


class Box(BaseModel):
    """A bounding box in pixels of the original image, from its upper left corner."""

    x_min: float = Field(examples=[131.25])
    y_min: float = Field(examples=[220.4])
    x_max: float = Field(examples=[310.07])
    y_max: float = Field(examples=[466.9])


class Keypoint(BaseModel):
    """One keypoint of an object, in pixels of the original image; a low score means that it may be hidden or wrong."""

    name: str = Field(examples=["left_shoulder"])
    x: float = Field(examples=[201.5])
    y: float = Field(examples=[251.12])
    score: float = Field(ge=0, le=1, examples=[0.8012])


class Detection(BaseModel):
    """One detected object."""

    label: str = Field(examples=["dog"])
    label_id: int = Field(description="class id in the data set", examples=[18])
    score: float = Field(ge=0, le=1, examples=[0.9123])
    box: Box
    keypoints: list[Keypoint] | None = Field(
        None, description="keypoints in the order of the model's skeleton; absent if the model has none"
    )


class Timings(BaseModel):
    """Time per stage, in milliseconds."""

    decode: float = Field(examples=[3.412])
    queue: float = Field(examples=[0.208])
    inference: float = Field(examples=[21.07])
    total: float = Field(description="from the request's headers to this response", examples=[25.931])


class Answer(BaseModel):
    """The detections of one image, sorted by descending score."""

    model: str = Field(examples=["resnet18-coco-512"])
    image: Size
    detections: list[Detection]
    timings_ms: Timings


class Label(BaseModel):
    """One class of the model."""

    label: str = Field(examples=["dog"])
    label_id: int = Field(examples=[18])


class ModelDescription(BaseModel):
    """A model's metadata and how it runs. `ap`, `ap50` and `keypoint_ap` are the COCO metrics."""

    name: str = Field(examples=["resnet18-coco-512"])
    provider: str = Field(examples=["cpu"])
    precision: str = Field(examples=["fp32"])
    input: Size = Field(description="maximum input size, which images are scaled to fit")
    shapes: list[Size] = Field(description="possible input sizes; the smallest that holds the scaled image is used")
    dataset: str = Field(examples=["COCO 2017"])
    threshold: float = Field(description="default minimum score of the detections returned")
    max_detections: int = Field(
        description="how many detections of an image the model finds at most, before threshold and labels select"
    )
    ap: float | None
    ap50: float | None
    keypoint_ap: float | None
    git_commit: str
    labels: list[Label]
    skeleton: Skeleton = Field(description="names of the keypoints, and the pairs of them that are connected by lines")
    arrangement: Arrangement | None = Field(None, description="how the model is run; null while it warms up")


class Refusal(BaseModel):
    """A model file that could not be loaded."""

    file: str = Field(examples=["new.onnx"])
    reason: str


class ModelList(BaseModel):
    """The served models, the default one first, and the model files that could not be loaded."""

    models: list[ModelDescription]
    refused: list[Refusal]


class Health(BaseModel):
    """The server's state."""

    status: str = Field(examples=["ready"])


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str = Field("", description="as in the header X-Request-ID; empty outside of a request")


class Refused(Exception):
    """An image or a request was refused: `problem` says why; `reason` is the last part of its type."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem
        self.reason = problem.type.rpartition("#")[2]


class Answers(BaseModel):
    """The results of several images, in order: the detections of each, or the problem with it."""

    results: list[Answer | Problem]
