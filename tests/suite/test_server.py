"""A suite through a server with OpenAI's protocol: what it is asked, and that responses stay whole."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from rich.console import Console

from vgpo.suite.folder import EvaluationFolder
from vgpo.suite.run import SuiteRequest, evaluate_suite

Make = Callable[..., SuiteRequest]
RESPONSE = "<think>I count \\boxed{1}.</think>\n\nSo \\boxed{4}"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A server on this machine; the bodies of the requests that it gets."""
    found: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": RESPONSE}
            choice = {"index": 0, "message": message, "finish_reason": "length" if len(found) == 1 else "stop"}
            usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
            body = {"id": "1", "object": "chat.completion", "created": 1, "model": "served", "choices": [choice]}
            data = json.dumps({**body, "usage": usage}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("LOCAL_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("LOCAL_API_KEY", "none")
    yield found
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_served_model_gets_images_and_the_protocols_sampling_and_its_thoughts_are_kept(
    request_for: Make, requests: list[dict[str, Any]]
) -> None:
    request = request_for(tasks=["counting"], engine="openai-api/local", checkpoint="served", batch_size=1)
    scores = evaluate_suite(request, Console(quiet=True)).tasks[0]
    assert len(requests) == 6
    body = requests[0]
    sent = {name: body.get(name) for name in ("model", "temperature", "top_p", "top_k", "repetition_penalty")}
    assert sent == {"model": "served", "temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
    image, text = body["messages"][0]["content"]
    assert base64.b64decode(image["image_url"]["url"].partition(",")[2]).startswith(b"\x89PNG")
    assert text["text"].endswith("?")
    graded = EvaluationFolder(request.out).read_graded("counting")
    assert {"".join(answer.completion.split()) for answer in graded} == {"".join(RESPONSE.split())}
    assert {answer.predicted for answer in graded} == {"4"}
    assert (scores.num_truncated, scores.num_no_box) == (1, 0)
