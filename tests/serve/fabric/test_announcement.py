from __future__ import annotations

from tokenmill.errors import ServiceError
from tokenmill.serve.fabric.announcement import Announcement
from tokenmill.serve.fabric.registry import open_registry


async def test_it_stands_until_it_is_withdrawn_and_can_be_said_again() -> None:
    registry = open_registry("memory:")
    await registry.start()
    said = Announcement(registry, "who/me", ttl_s=5.0)
    assert said.lost
    for value in (b"one", b"two"):
        await said.say(value)
        assert await registry.get("who/me") == value
        assert not said.lost
    await said.withdraw()
    await said.withdraw()
    assert await registry.get("who/me") is None
    assert said.lost
    await said.say(b"three")
    assert await registry.get("who/me") == b"three"
    await registry.stop()


async def test_trouble_at_the_registry_is_no_trouble_here() -> None:
    class Troubled:
        async def lease(self, ttl_s: float) -> None:
            raise ServiceError("the disk is full")

    said = Announcement(Troubled(), "who/me", ttl_s=5.0)
    await said.try_to_say(b"one")
    assert said.lost
    await said.withdraw()
