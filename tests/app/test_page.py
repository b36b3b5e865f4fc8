"""The demo page: its files, and what a user sees in Chromium."""

import base64
import functools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from app.settings import Settings
from model.detector import Detector
from model.draw import choose_colour
from tests.app.client import Client
from tests.app.colours import (
    BLUE_FOUND,
    GREEN_FOUND,
    HEIGHT,
    PHOTO,
    PHOTO_PNG,
    RED,
    RED_FOUND,
    WIDTH,
    describe,
    encode,
    paint,
    save_model,
)
from tests.app.detectors import HeldDetector
from tests.app.listener import listen

RED_ROW, GREEN_ROW, BLUE_ROW = ["red", "90.0 %"], ["green", "60.0 %"], ["blue", "20.0 %"]
ONLY_RED = encode(paint(2 * WIDTH, 2 * HEIGHT, (RED, (32, 16, 96, 64))))
INSECURE_HOST = "page.test"  # this machine, by a name that Chromium does not trust, unlike 127.0.0.1
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,900",
    "--use-fake-device-for-media-stream",
]


@pytest.mark.anyio
async def test_files_have_media_types_and_security_headers(client: Client) -> None:
    index = await client.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    links = re.findall(r'(?:href|src)="([^"]+)"', index.text)
    assert {"page/main.js", "page/style.css", "page/icon.svg", "docs", "models"} == set(links)
    for link in links:  # all relative, since a proxy may serve the page below a path
        assert (await client.get(f"/{link}")).status_code == 200
    for name, media_type in [
        ("main.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ]:
        assert (await client.get(f"/page/{name}")).headers["content-type"] == media_type
    policy = dict(each.split(" ", 1) for each in index.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob:"
    assert index.headers["x-content-type-options"] == "nosniff"
    assert (await client.get("/page/nothing.js")).status_code == 404
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


@pytest.mark.anyio
async def test_unchanged_file_is_answered_with_304(client: Client) -> None:
    first = await client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = await client.get("/", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert (await client.get("/", headers={"if-none-match": '"other"'})).status_code == 200


class Page:
    """The page in a browser, and the server behind it."""

    def __init__(self, driver: webdriver.Chrome, client: Client, portal: BlockingPortal) -> None:
        self.driver = driver
        self.address = str(client.base_url)
        self._client = client
        self._portal = portal

    def open(self, address: str | None = None) -> None:
        self.driver.get(address or self.address)
        self.until(lambda: self.find("#model").text)

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 60, 0.05).until(lambda _: condition())

    def choose(self, path: Path) -> None:
        self.find("#file").send_keys(str(path))

    def rows(self) -> list[list[str]]:
        """Returns the label and score of each object listed."""
        cells = "[row.children[1].textContent, row.children[2].textContent]"
        rows: list[list[str]] = self.run(f"return [...document.querySelectorAll('#objects li')].map(row => {cells})")
        return rows

    def detections(self) -> Any:
        return json.loads(self.find("#json").text)["detections"]

    def colour_at(self, x: float, y: float) -> list[int]:
        """Returns the overlay's colour, as RGBA, at a point of `PHOTO`."""
        script = """
            const [x, y, width, height] = arguments;
            const overlay = document.getElementById("overlay");
            const scale = Math.min(overlay.width / width, overlay.height / height);
            const left = (overlay.width - width * scale) / 2 + x * scale;
            const top = (overlay.height - height * scale) / 2 + y * scale;
            return [...overlay.getContext("2d").getImageData(Math.round(left), Math.round(top), 1, 1).data];
        """
        colour: list[int] = self.run(script, x, y, 2 * WIDTH, 2 * HEIGHT)
        return colour

    def read_clipboard(self) -> str:
        permission = {"permissions": ["clipboardReadWrite"], "origin": self.address}
        self.driver.execute_cdp_cmd("Browser.grantPermissions", permission)
        text: str = self.run("return navigator.clipboard.readText()")
        return text

    def reload_models(self) -> None:
        self._portal.call(self._client.post, "/models/reload")

    def sample(self, name: str, **labels: str) -> float:
        return self._portal.call(functools.partial(self._client.sample, name, **labels))

    def wait_for(self, name: str, value: float) -> None:
        self._portal.call(self._client.until, name, value)

    def count_requests(self) -> float:
        return self.sample("centernet_request_seconds_count", route="/detect")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)")
    folder = tmp_path_factory.mktemp("chromium")
    video = folder / "camera.y4m"  # the fake camera's
    frame = cv2.cvtColor(PHOTO, cv2.COLOR_RGB2YUV_I420).tobytes()
    video.write_bytes(b"YUV4MPEG2 W%d H%d F10:1 Ip A1:1 C420\nFRAME\n" % (2 * WIDTH, 2 * HEIGHT) + frame)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--use-file-for-fake-video-capture={video}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_argument(f"--host-resolver-rules=MAP {INSECURE_HOST} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def detector(model_path: Path) -> HeldDetector:
    return HeldDetector(model_path)


@pytest.fixture
def page(driver: webdriver.Chrome, make_settings: Callable[..., Settings], detector: Detector) -> Iterator[Page]:
    """The open page; checks after the test that it sent requests to this machine only and raised no errors."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listen(make_settings(max_image_bytes=100_000), detector)) as client,
    ):
        page = Page(driver, client, portal)
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.open()
        yield page
        driver.get("about:blank")
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requested = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    hosts = {url.hostname for url in map(urlsplit, requested) if url.scheme in ("http", "https", "ws", "wss")}
    assert hosts - {INSECURE_HOST} == {"127.0.0.1"}
    severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if entry["source"] != "network"] == []  # network entries include refusals


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "it's a photo.png"
    path.write_bytes(PHOTO_PNG)
    return path


def test_boxes_are_drawn_over_the_image_in_their_classes_colours(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    assert page.colour_at(32, 40) == page.colour_at(64, 64) == [*choose_colour(0), 255]
    assert page.colour_at(112, 100) == page.colour_at(176, 100) == [*choose_colour(1), 255]
    assert page.colour_at(64, 40)[3] == page.colour_at(16, 104)[3] == 0  # inside red's box; blue's edge
    assert page.detections() == [RED_FOUND, GREEN_FOUND]
    for stage in ("decode", "queue", "inference", "total", "round_trip"):
        assert re.fullmatch(r"\d+\.\d ms", page.find(f"[data-stage={stage}]").text)


class TestWithKeypoints:
    """The page with a model whose keypoints are two corners of each box."""

    @pytest.fixture
    def detector(self, tmp_path: Path) -> HeldDetector:
        return HeldDetector(save_model(tmp_path / "corners.onnx", with_corners=True))

    def test_keypoints_and_the_lines_between_them_are_drawn_over_the_image(self, page: Page, photo: Path) -> None:
        assert "3 classes · 2 keypoints" in page.find("#model").text
        page.choose(photo)
        page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
        for point, index in [((64, 40), 0), ((144, 96), 1)]:  # the middles of the diagonals
            assert page.colour_at(*point) == [*choose_colour(index), 255]
        assert page.colour_at(80, 30)[3] == 0
        assert [joint["name"] for joint in page.detections()[0]["keypoints"]] == ["upper_left", "lower_right"]


class TestWithReplacedModel:
    """The page while the server's model is replaced by another one."""

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return save_model(tmp_path / "colours.onnx")

    def test_model_that_answers_is_described(self, page: Page, photo: Path, model_path: Path) -> None:
        page.choose(photo)
        page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
        page.find("[data-label=green]").click()
        long_name = "vermilion" * 20
        shades = describe(name="shades", labels=(long_name, "lime", "azure"), threshold=0.7)
        save_model(model_path, shades.to_properties())
        page.reload_models()
        page.choose(photo)
        page.until(lambda: page.rows() == [[long_name, "90.0 %"]])
        assert page.find("#model").text.startswith("shades · ")
        assert page.find("#curl").text.endswith("threshold=0.7'")
        assert page.colour_at(32, 40) == [*choose_colour(0), 255]
        for box in ("#objects", "#classes"):
            assert page.run(f"return document.querySelector('{box}').scrollWidth") <= page.find(box).size["width"]

    def test_model_that_answers_the_camera_is_described(self, page: Page, model_path: Path) -> None:
        permission = {"permissions": ["videoCapture"], "origin": page.address}
        page.driver.execute_cdp_cmd("Browser.grantPermissions", permission)
        page.find("#camera").click()
        page.until(lambda: page.find("#live").is_displayed())
        page.find("#live").click()
        page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
        for name, labels in (("shades", ("red", "green", "blue")), ("shades", ("dark", "light", "grey"))):
            save_model(model_path, describe(name=name, labels=labels, precision=labels[0]).to_properties())
            page.reload_models()
            page.until(lambda: page.find("#model").text.startswith("shades · "))
            page.until(lambda precision=labels[0]: page.find("#model").text.endswith(precision))


def test_model_is_described_once_it_can_be_fetched(page: Page, photo: Path) -> None:
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/models"]})
    page.driver.get(page.address)
    page.until(lambda: page.find("#message").is_displayed())
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    page.choose(photo)
    page.until(lambda: page.find("#model").text.startswith("colours · "))


def test_colours_equal_those_of_drawn_images(page: Page) -> None:
    script = "return import('./page/overlay.js').then(({chooseColour}) => [...Array(100).keys()].map(chooseColour))"
    assert page.run(script) == [list(choose_colour(index)) for index in range(100)]


def test_threshold_slider_filters_without_a_new_request(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    slider = page.find("#threshold")
    for key, rows in [(Keys.HOME, [RED_ROW, GREEN_ROW, BLUE_ROW]), (Keys.END, []), (Keys.LEFT * 10, [RED_ROW])]:
        slider.send_keys(key)
        assert page.rows() == rows
        assert page.detections() == [RED_FOUND, GREEN_FOUND, BLUE_FOUND][: len(rows)]
        assert page.find("#status").text == f"{len(rows) or 'none'} of 3 shown"
    assert page.colour_at(112, 100)[3] == 0  # green's edge
    assert page.count_requests() == 1


def test_class_buttons_filter_without_a_new_request(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    page.find("[data-label=green]").click()
    assert page.rows() == [GREEN_ROW]
    page.find("[data-label=red]").click()
    assert page.rows() == [RED_ROW, GREEN_ROW]
    page.find("[data-label=green]").click()
    assert page.rows() == [RED_ROW]
    assert page.colour_at(112, 100)[3] == 0  # green's edge
    page.find("[data-label='']").click()
    assert page.rows() == [RED_ROW, GREEN_ROW]
    assert page.count_requests() == 1


def test_curl_command_returns_the_detections_shown(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    page.find("#threshold").send_keys(Keys.HOME)
    page.find("[data-label=red]").click()
    page.find("[data-label=blue]").click()
    curl, option, data, url = shlex.split(page.find("#curl").text)
    assert (curl, option, data) == ("curl", "--data-binary", "@it's a photo.png")
    assert httpx.post(url, content=PHOTO_PNG).json()["detections"] == page.detections() == [RED_FOUND, BLUE_FOUND]


def test_curl_command_is_copied(page: Page) -> None:
    page.find("[data-copy=curl]").click()
    assert page.find("[data-copy=curl]").text == "Copied"
    assert page.read_clipboard() == page.find("#curl").text


@pytest.mark.parametrize(
    "event", ["new DragEvent('drop', {dataTransfer: data, ", "new ClipboardEvent('paste', {clipboardData: data, "]
)
def test_image_can_be_dropped_or_pasted(page: Page, event: str) -> None:
    script = f"""
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0));
        data.items.add(new File([bytes], "photo.png", {{type: "image/png"}}));
        document.getElementById("stage").dispatchEvent({event} bubbles: true, cancelable: true}}));
    """
    page.run(script, base64.b64encode(PHOTO_PNG).decode())
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])


def test_paste_without_an_image_shows_a_message(page: Page) -> None:
    page.run("document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))")
    assert "no picture" in page.find("#message").text


@pytest.mark.parametrize(
    ("data", "title", "detail"),
    [
        (b"hello", "This is not an image of a known format", "JPEG, PNG"),
        (PHOTO_PNG[: len(PHOTO_PNG) // 2], "The image is broken", "cannot be decoded"),
        (b"x" * 100_001, "The body has too many bytes", "100000"),
    ],
    ids=["unknown", "broken", "large"],
)
def test_refusal_is_shown(page: Page, photo: Path, data: bytes, title: str, detail: str) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    photo.write_bytes(data)
    page.choose(photo)
    page.until(lambda: page.find("#message").is_displayed())
    assert page.find("#message").get_attribute("role") == "alert"
    assert page.find("#message-title").text == title
    assert detail in page.find("#message-detail").text
    assert page.rows() == []
    assert page.find("#json").text == page.find("[data-stage=total]").text == ""
    assert page.colour_at(32, 40)[3] == 0
    is_shown = data.startswith(PHOTO_PNG[:8])  # a truncated image is shown as far as it decodes
    page.until(lambda: page.find("#photo").is_displayed() == is_shown)
    photo.write_bytes(PHOTO_PNG)
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    assert not page.find("#message").is_displayed()


def test_unreachable_server_is_reported(page: Page, photo: Path) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    page.choose(photo)
    page.until(lambda: page.find("#message-title").text == "The server cannot be reached")
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline | {"offline": False})
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])


def test_latest_image_chosen_is_the_one_shown(page: Page, photo: Path, detector: HeldDetector) -> None:
    detector.gate.clear()
    page.choose(photo)
    page.wait_for("centernet_requests_in_flight", 1)
    photo.write_bytes(ONLY_RED)
    page.choose(photo)
    page.until(lambda: page.sample("centernet_requests_total", route="/detect", status="499") == 1)
    detector.gate.set()
    page.until(lambda: page.rows() == [RED_ROW])
    assert not page.find("#message").is_displayed()


def test_image_is_shown_upright(page: Page, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(
        encode(Image.fromarray(PHOTO).transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif, quality=100)
    )
    page.choose(path)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    assert page.find("#photo").is_displayed()
    photo = page.find("#photo")
    assert [photo.get_property("naturalWidth"), photo.get_property("naturalHeight")] == [2 * WIDTH, 2 * HEIGHT]
    assert page.colour_at(112, 100) == [*choose_colour(1), 255]


def test_detections_are_shown_for_an_image_that_the_browser_cannot_display(page: Page, tmp_path: Path) -> None:
    path = tmp_path / "photo.tiff"
    path.write_bytes(encode(PHOTO, "TIFF"))
    page.choose(path)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    assert "cannot show" in page.find("#message").text
    assert not page.find("#photo").is_displayed()
    assert page.detections() == [RED_FOUND, GREEN_FOUND]
    assert page.colour_at(32, 40) == [*choose_colour(0), 255]


def test_camera_detects_live_and_takes_an_image(page: Page) -> None:
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["videoCapture"], "origin": page.address})
    page.find("#camera").click()
    page.until(lambda: page.find("#take").is_displayed())
    page.find("#live").click()
    page.until(lambda: page.count_requests() > 2)  # sends requests continuously
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    assert page.find("#video").is_displayed()
    page.find("#live").click()
    page.until(lambda: page.find("#status").text == "The camera is on")
    page.find("#take").click()
    page.until(lambda: page.find("#photo").is_displayed() and page.rows() == [RED_ROW, GREEN_ROW])
    assert page.run("return document.getElementById('video').srcObject") is None  # the camera is off
    for found, known in zip(page.detections(), [RED_FOUND, GREEN_FOUND], strict=True):
        assert found["box"] == pytest.approx(known["box"], abs=3)  # it went through a video and a JPEG
    assert "@camera.jpg" in page.find("#curl").text


def test_denied_camera_permission_shows_a_message(page: Page) -> None:
    refused = {"permission": {"name": "camera"}, "setting": "denied", "origin": page.address}
    page.driver.execute_cdp_cmd("Browser.setPermission", refused)
    page.find("#camera").click()
    page.until(lambda: "Allow it in the browser's settings" in page.find("#message").text)
    assert page.find("#camera").is_displayed()


def test_camera_needs_https(page: Page, photo: Path) -> None:
    page.open(page.address.replace("127.0.0.1", INSECURE_HOST))
    page.find("#camera").click()
    page.until(lambda: "HTTPS" in page.find("#message").text)
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    page.find("[data-copy=json]").click()
    json_shown = page.find("#json").text
    page.open()
    assert page.read_clipboard() == json_shown


def test_all_controls_are_reachable_by_keyboard(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    script = """
        const {id, dataset, tagName} = document.activeElement;
        const visible = id === "file" ? document.getElementById("choose") : document.activeElement;
        return [id || dataset.copy || dataset.label || tagName.toLowerCase(), getComputedStyle(visible).outlineStyle];
    """
    reached = []
    while reached[-2:] != ["json", "json"]:
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        name, outline = page.run(script)
        reached.append(name)
        assert outline == "solid"
        assert len(reached) < 30
    buttons = ["button", "red", "green"]
    assert reached == ["a", "a", "file", "camera", "threshold", *buttons, "li", "curl", "curl", "json", "json"]


def test_selected_row_highlights_its_box(page: Page, photo: Path) -> None:
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    read_selected = "return [...document.querySelectorAll('#objects li')].map(row => row.ariaSelected)"
    first, second = page.driver.find_elements(By.CSS_SELECTOR, "#objects li")
    first.send_keys(Keys.ARROW_DOWN)
    assert page.run(read_selected) == ["false", "true"]
    assert (page.colour_at(32, 40)[3] < 255, page.colour_at(112, 100)[3]) == (True, 255)
    second.send_keys(Keys.HOME)
    assert page.run(read_selected) == ["true", "false"]
    page.find("#threshold").send_keys(Keys.ARROW_LEFT)  # the focus has left the list
    assert page.run(read_selected) == ["false", "false"]
    ActionChains(page.driver).move_to_element(second).perform()
    assert page.run(read_selected) == ["false", "true"]
    ActionChains(page.driver).move_to_element_with_offset(page.find("#overlay"), 40, 0).perform()  # between the boxes
    assert page.run(read_selected) == ["false", "false"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone(page: Page, photo: Path, scheme: str) -> None:
    size = {"width": 375, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preference = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", preference)
    page.open()
    page.choose(photo)
    page.until(lambda: page.rows() == [RED_ROW, GREEN_ROW])
    assert page.run("return document.documentElement.scrollWidth") == 375
    assert page.colour_at(32, 40) == [*choose_colour(0), 255]
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", ground))) > 128) == (scheme == "light")
    script = """
        const done = arguments[0];
        new PerformanceObserver((list) => done(list.getEntries().map(({value}) => value))).observe(
            {type: "layout-shift", buffered: true});
        requestAnimationFrame(() => requestAnimationFrame(() => done([])));
    """
    assert sum(page.driver.execute_async_script(script)) < 0.001
