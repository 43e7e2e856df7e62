"""A real browser talks to the house with its microphone: over WebRTC, and over a WebSocket with a client secret."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from config.settings import ProviderSettings, Settings
from services.realtime.seams import VoiceSeams
from tests.fakes.browser import Page, chromium, microphone, page_server, visited
from tests.fakes.calls import Ears, at_24k, loudness, voices
from tests.fakes.house import House, open_house
from tests.fakes.realtime_provider import realtime_provider
from tests.fakes.speech import SENTENCE, spoken_pcm

pytestmark = pytest.mark.anyio

_PAGE = """<!doctype html><script>
const told = {events: [], text: "", transcript: "", loudest: 0};
const report = (more) => fetch("/result", {method: "POST", body: JSON.stringify({...told, ...more})});
const wanted = CONFIG;
const heard = (event, send) => {
  told.events.push(event.type);
  if (event.type === "error") return report({error: event.error});
  if (event.type.endsWith("input_audio_transcription.completed")) told.transcript = event.transcript;
  if (event.type === "response.output_text.delta") told.text += event.delta;
  if (event.type === "session.created" && wanted.ask) for (const one of wanted.ask) send(JSON.stringify(one));
  if (event.type === wanted.last) report({});
};
const audio = {echoCancellation: false, noiseSuppression: false, autoGainControl: false};
const byWebRTC = async (media) => {
  const peer = new RTCPeerConnection();
  peer.ontrack = ({streams}) => {
    const player = new Audio(); player.srcObject = streams[0] || new MediaStream(peer.getReceivers().map(r => r.track));
    player.play();
    const context = new AudioContext(), analyser = context.createAnalyser(), samples = new Float32Array(2048);
    context.createMediaStreamSource(player.srcObject).connect(analyser);
    setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      told.loudest = Math.max(told.loudest, ...samples.map(Math.abs));
    }, 40);
  };
  media.getTracks().forEach(track => peer.addTrack(track, media));
  const channel = peer.createDataChannel("oai-events");
  channel.onmessage = ({data}) => heard(JSON.parse(data), text => channel.send(text));
  await peer.setLocalDescription(await peer.createOffer());
  const form = new FormData();
  form.set("sdp", peer.localDescription.sdp);
  form.set("session", JSON.stringify(wanted.session));
  const answer = await fetch(wanted.url + "/v1/realtime/calls", {
    method: "POST", body: form, headers: {authorization: "Bearer " + wanted.secret}});
  if (answer.status !== 201) return report({error: await answer.text()});
  told.location = answer.headers.get("location");
  await peer.setRemoteDescription({type: "answer", sdp: await answer.text()});
};
const byWebSocket = async (media) => {
  const socket = new WebSocket(wanted.url.replace("http", "ws") + "/v1/realtime",
    ["realtime", "openai-insecure-api-key." + wanted.secret]);
  socket.onmessage = ({data}) => heard(JSON.parse(data), text => socket.send(text));
  socket.onclose = ({code}) => report({error: "closed with " + code});
  socket.onopen = () => {
    told.protocol = socket.protocol;
    const context = new AudioContext({sampleRate: 24000});
    const reader = context.createScriptProcessor(1024, 1, 1);
    reader.onaudioprocess = ({inputBuffer}) => {
      const pcm = new Int16Array(inputBuffer.getChannelData(0).map(one => Math.max(-1, Math.min(1, one)) * 32767));
      const sound = btoa(String.fromCharCode(...new Uint8Array(pcm.buffer)));
      if (socket.readyState === 1) socket.send(JSON.stringify({type: "input_audio_buffer.append", audio: sound}));
    };
    context.createMediaStreamSource(media).connect(reader);
    reader.connect(context.destination);
  };
};
navigator.mediaDevices.getUserMedia({audio}).then(wanted.socket ? byWebSocket : byWebRTC)
  .catch(error => report({error: String(error)}));
</script>"""
WORDS = "What the browser said"
TEXT_ONLY = {"type": "realtime", "output_modalities": ["text"]}


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    chromium()
    async with page_server() as made:
        yield made


def of_pages(settings: Settings, page: Page, **more: Any) -> Settings:
    """Settings of a house to which that page may talk."""
    server = settings.server.model_copy(update={"cors_origins": (page.url,)})
    return settings.model_copy(update={"server": server, **more})


async def visit(house: House, page: Page, folder: Path, model: str, **wanted: Any) -> dict[str, Any]:
    """What comes of the page, which talks with a client secret for that model."""
    session = {"type": "realtime", "model": model, **wanted.pop("first", {})}
    made = await house.client.post("/v1/realtime/client_secrets", json={"session": session})
    assert made.status_code == 200, made.text
    config = {"url": house.url, "secret": made.json()["value"], **wanted}
    page.html = _PAGE.replace("CONFIG", orjson.dumps(config).decode())
    result = await visited(page, folder, await asyncio.to_thread(microphone, folder, SENTENCE))
    assert "error" not in result, result
    return result


@pytest.mark.parametrize("socket", [False, True], ids=["webrtc", "websocket"])
async def test_a_browser_is_heard_and_answered(settings: Settings, page: Page, tmp_path: Path, socket: bool) -> None:
    async with open_house(of_pages(settings, page)) as house:
        seams: VoiceSeams = voices(WORDS)
        house.services.realtime.voice = seams
        told = await visit(
            house,
            page,
            tmp_path,
            "offline/rules",
            last="response.done",
            socket=socket,
            session=TEXT_ONLY,
            first=TEXT_ONLY,
        )
        assert told["transcript"] == WORDS
        assert f"You said: {WORDS}" in told["text"]
        assert "input_audio_buffer.speech_started" in told["events"]
        assert isinstance(seams.listener, Ears)
        assert loudness(seams.listener.heard[0]) > 2_000
        if socket:
            assert told["protocol"] == "realtime"
        else:
            assert told["location"].startswith("/v1/realtime/calls/rtc_")


async def test_a_browser_hears_what_is_said(settings: Settings, page: Page, tmp_path: Path) -> None:
    """A relayed model speaks with flite's voice: it comes out of the browser's loudspeaker."""
    async with realtime_provider() as provider:
        provider.sound = at_24k(spoken_pcm("Good morning, everybody."))
        providers = ProviderSettings(
            discover_local=False, openai_api_key=SecretStr("sk-of-the-house"), openai_base_url=provider.url
        )
        async with open_house(of_pages(settings, page, providers=providers)) as house:
            told = await visit(
                house,
                page,
                tmp_path,
                "openai/gpt-realtime",
                last="output_audio_buffer.stopped",
                ask=[{"type": "response.create"}],
                session={"type": "realtime"},
            )
            assert told["loudest"] > 0.05
            assert told["events"].index("output_audio_buffer.started") < told["events"].index(
                "output_audio_buffer.stopped"
            )
            assert "response.output_audio.delta" not in told["events"]
            assert "input_audio_buffer.append" in provider.kinds()
