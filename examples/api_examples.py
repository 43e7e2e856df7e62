"""Background runs over HTTP: started, followed, looked at, cancelled, begun by the clock.

With a running server:

    URL=http://127.0.0.1:8000 TOKEN=... python -m examples.api_examples

TOKEN is an access token or an API key with the scope `runs`. Nothing of ours is imported: this is what any client does.
"""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import httpx


def main(url: str, token: str) -> None:
    """Every example, one after the other."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=30) as client:
        agents = [agent["id"] for agent in client.get("/api/agents").json()["agents"]]
        print("agents:", ", ".join(agents))
        print("config:", client.get("/api/agents/react/config").json()["tools"])
        run_id = start(client, "react", "What is 6 times 7?")
        print("started:", run_id)
        for event in follow(client, run_id):
            print("  event", event["seq"], event["kind"])
        print("status:", client.get("/api/agents/react/status", params={"run_id": run_id}).json()["status"])
        run = client.get(f"/api/agents/react/runs/{run_id}").json()
        print("result:", run["output"], f"({run['usage']['total_tokens']} tokens)")
        other = start(client, "simple", "Never mind.")
        print("cancelled or too late:", client.post(f"/api/runs/{other}/cancel").json()["status"])
        schedule = client.post(
            "/api/schedules",
            json={
                "agent": "simple",
                "cron": "0 7 * * 1-5",
                "timezone": "Europe/Paris",
                "run": {"input": "Good morning"},
            },
        ).json()
        print("next at:", schedule["next_at"])
        client.delete(f"/api/schedules/{schedule['schedule_id']}")


def start(client: httpx.Client, agent: str, question: str) -> str:
    """A run's id, at once. The key makes it safe to ask again when no answer comes."""
    answer = client.post(
        f"/api/agents/{agent}/run",
        json={"input": question, "metadata": {"dossier_id": "dossier:1"}},
        headers={"idempotency-key": f"{os.getpid()}-{agent}-{question}"},
    )
    answer.raise_for_status()
    run_id: str = answer.json()["run_id"]
    return run_id


def follow(client: httpx.Client, run_id: str) -> Iterator[dict[str, Any]]:
    """Every event once and in order, however often the connection is lost: with the last `seq` one goes on."""
    last = 0
    while True:
        try:
            with client.stream("GET", f"/api/runs/{run_id}/events", headers={"last-event-id": str(last)}) as answer:
                if answer.status_code == 204:  # the end has been told
                    return
                answer.raise_for_status()
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        event = json.loads(line.removeprefix("data: "))
                        last = event.get("seq", last)
                        yield event
        except httpx.TransportError:
            continue


if __name__ == "__main__":
    if "TOKEN" not in os.environ:
        sys.exit("set TOKEN to an access token or an API key")
    main(os.environ.get("URL", "http://127.0.0.1:8000"), os.environ["TOKEN"])
