"""A stand-in for the grader's worker that starts at once: says right to "right", exits on "crash", hangs on "hang"."""

import json
import os
import sys
import time
from multiprocessing.connection import Connection

with Connection(int(sys.argv[1])) as connection:
    connection.send_bytes(b"ready")
    while True:
        try:
            answer, _ = json.loads(connection.recv_bytes())
        except EOFError:
            break
        if answer == "crash":
            os._exit(3)
        if answer == "hang":
            time.sleep(30)
        connection.send_bytes(b"1" if answer == "right" else b"0")
