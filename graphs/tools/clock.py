"""What time it is."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_core.tools import ToolException, tool


@tool
def clock(timezone: str = "UTC") -> str:
    """The current date and time, in UTC or in an IANA time zone such as `Europe/Paris`."""
    try:
        zone = UTC if timezone.upper() == "UTC" else ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ToolException(f"There is no time zone {timezone[:60]!r}.") from error
    return datetime.now(zone).strftime("%A %Y-%m-%d %H:%M:%S %Z")


clock.handle_tool_error = True
