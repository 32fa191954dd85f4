"""A headless Chromium that tests can ask about a page, over the pipe of its debugging protocol."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run "
    "--disable-extensions --disable-background-networking --remote-debugging-pipe"
)


class Page:
    """One page in a browser of its own; a context manager."""

    def __init__(self, path, folder, size=(1000, 700)):
        program = next(filter(None, map(shutil.which, _NAMES)), None)
        if program is None:
            pytest.skip(f"no Chromium here to open the page with (looked for {', '.join(_NAMES)})")
        self.reading, theirs_out = os.pipe()
        theirs_in, self.writing = os.pipe()

        def connect():  # in the new process: the browser reads from 3 and writes to 4
            pair = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in (theirs_in, theirs_out)]
            os.dup2(pair[0], 3)
            os.dup2(pair[1], 4)

        self.process = subprocess.Popen(
            [program, *_FLAGS.split(), f"--user-data-dir={folder}", "about:blank"],
            # Not pass_fds: it fails where 3 or 4 is not open here, such as a font's file that was just closed.
            close_fds=False, preexec_fn=connect, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.numbers, self.buffer, self.events, self.session = itertools.count(1), b"", [], None
        try:
            self._open(path, size)
        except BaseException:
            self.__exit__()
            raise

    def _open(self, path, size):
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.resize(*size)
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.reading)
        os.close(self.writing)

    def resize(self, width, height):
        """Make the window of another size."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def fit(self, width):
        """Make the window as high as the page is at a width, which may depend on the height of the window."""
        height = 400
        self.resize(width, height)
        while (wanted := self.run("document.documentElement.scrollHeight")) > height:
            height = wanted
            self.resize(width, height)

    def ask(self, method, **parameters):
        """The answer to one command."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, method):
        """Wait for an event."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self):
        end = time.monotonic() + 60
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reading], [], [], max(0, end - time.monotonic()))
            data = os.read(self.reading, 1 << 16) if ready else b""
            assert data, "the browser does not answer"
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def run(self, script):
        """The value of an expression of JavaScript in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def hover(self, selector, number=0):
        """Move the pointer to an element."""
        box = self.run(
            f"(() => {{const e = document.querySelectorAll({json.dumps(selector)})[{number}]; e.scrollIntoView(); "
            f"const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]}})()"
        )
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def prefer(self, scheme):
        """Let the reader prefer "light" or "dark"."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def messages(self):
        """What the page has logged: errors, blocked scripts."""
        logged = [
            event for event in self.events if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")
        ]
        return [json.dumps(event["params"]) for event in logged]

    def screenshot(self, path):
        """Write a PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))
