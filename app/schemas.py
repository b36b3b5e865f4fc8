"""What the server sends, as its documentation shows it: free of the server itself, for its client too."""

from pydantic import BaseModel, Field

from model.skeleton import Skeleton


class Arrangement(BaseModel):
    """`instances` batches of up to `max_batch` images at once, on `threads` of the CPU's each."""

    instances: int = Field(examples=[2])
    threads: int = Field(examples=[1])
    max_batch: int = Field(examples=[4])
    images_per_second: float | None = Field(None, description="as measured; none where all of it is set")

    @property
    def session_threads(self) -> int | None:
        """What `Detector.infer` is told: one instance has all threads."""
        return self.threads if self.instances > 1 else None


class Size(BaseModel):
    """A picture's size in pixels, upright."""

    width: int = Field(examples=[640])
    height: int = Field(examples=[480])


class Box(BaseModel):
    """Edges in the picture's own pixels, from its upper left corner."""

    x_min: float = Field(examples=[131.25])
    y_min: float = Field(examples=[220.4])
    x_max: float = Field(examples=[310.07])
    y_max: float = Field(examples=[466.9])


class Keypoint(BaseModel):
    """One joint of an object, in the picture's own pixels; a low score says that it may be hidden or elsewhere."""

    name: str = Field(examples=["left_shoulder"])
    x: float = Field(examples=[201.5])
    y: float = Field(examples=[251.12])
    score: float = Field(ge=0, le=1, examples=[0.8012])


class Detection(BaseModel):
    """One object."""

    label: str = Field(examples=["dog"])
    label_id: int = Field(description="the label's id in the data set", examples=[18])
    score: float = Field(ge=0, le=1, examples=[0.9123])
    box: Box
    keypoints: list[Keypoint] | None = Field(
        None, description="its joints in the model's order; not there where the model knows none"
    )


class Timings(BaseModel):
    """Where the time went, in milliseconds."""

    decode: float = Field(examples=[3.412])
    queue: float = Field(examples=[0.208])
    inference: float = Field(examples=[21.07])
    total: float = Field(description="from the request's head to this answer", examples=[25.931])


class Answer(BaseModel):
    """What was found in one picture, the surest first."""

    model: str = Field(examples=["resnet18-coco-512"])
    image: Size
    detections: list[Detection]
    timings_ms: Timings


class Label(BaseModel):
    """One class that the model knows."""

    label: str = Field(examples=["dog"])
    label_id: int = Field(examples=[18])


class ModelDescription(BaseModel):
    """The model, as its file describes it, and where it runs. `ap`, `ap50` and `keypoint_ap` are COCO's."""

    name: str = Field(examples=["resnet18-coco-512"])
    provider: str = Field(examples=["cpu"])
    precision: str = Field(examples=["fp32"])
    input: Size = Field(description="what a photo is scaled to fit into")
    shapes: list[Size] = Field(description="what photos are computed in: the smallest that holds the scaled photo")
    dataset: str = Field(examples=["COCO 2017"])
    threshold: float = Field(description="least score of what is answered, unless a request says otherwise")
    ap: float | None
    ap50: float | None
    keypoint_ap: float | None
    git_commit: str
    labels: list[Label]
    skeleton: Skeleton = Field(description="the joints that it finds, and the pairs of them that a line connects")
    arrangement: Arrangement | None = Field(None, description="how it is run; not there while it is warmed up")


class Refusal(BaseModel):
    """A model file that could not be loaded."""

    file: str = Field(examples=["new.onnx"])
    reason: str


class ModelList(BaseModel):
    """Everything that is served; the first is used where a request names none. And what could not be loaded."""

    models: list[ModelDescription]
    refused: list[Refusal]


class Health(BaseModel):
    """How the server is."""

    status: str = Field(examples=["ready"])


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str = Field("", description="as in the header X-Request-ID; empty where there was no request")


class Refused(Exception):
    """A picture or a request was refused: `problem` says why, `reason` in one word."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem
        self.reason = problem.type.rpartition("#")[2]


class Answers(BaseModel):
    """What was found in each of several pictures, in their order, or why one was refused."""

    results: list[Answer | Problem]
