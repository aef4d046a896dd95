"""What both upstreams say when they refuse: status, code and text of each, and the pages of what stands before them."""

from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """An HTTP status and the text that goes with a code."""

    http_status: int
    message: str


COINMARKETCAP = {
    400: Refusal(400, 'Invalid value for "id": "999999999"'),  # a bad argument
    500: Refusal(500, "An internal server error occurred"),  # server side
    1001: Refusal(401, "This API Key is invalid."),  # wrong key
    1002: Refusal(401, "API key missing."),  # no key
    1003: Refusal(402, "Your API Key must be activated. Please go to pro.coinmarketcap.com/account/plan."),  # new key
    1004: Refusal(402, "Your API Key's subscription plan has expired."),  # plan ended
    1005: Refusal(403, "An API Key is required for this call."),  # endpoint is not for keyless use
    1006: Refusal(403, "Your API Key subscription plan doesn't support this endpoint."),  # plan too small
    1007: Refusal(403, "This API Key has been disabled. Please contact support."),  # key taken away
    1008: Refusal(
        429, "You've exceeded your API Key's HTTP request rate limit. Rate limits reset every minute."
    ),  # minute limit
    1009: Refusal(429, "You've exceeded your API Key's daily rate limit."),  # credits of the day are gone
    1010: Refusal(429, "You've exceeded your API Key's monthly rate limit."),  # credits of the month are gone
    1011: Refusal(429, "You've hit an IP rate limit."),  # too many requests from one address
}

BYBIT = {
    5004: Refusal(200, "Server Timeout"),  # the backend was late; its result is null
    7001: Refusal(200, "request params type error"),  # a parameter of the wrong type
    10000: Refusal(200, "Server Timeout"),  # the backend was late
    10001: Refusal(200, "Not supported symbols"),  # unknown, delisted, lower case or of another category
    10006: Refusal(200, "Too many visits!"),  # API rate limit
    10009: Refusal(200, "IP has been banned"),  # region or compliance
    10016: Refusal(200, "Server error."),  # server side
    10017: Refusal(404, "Route not found."),  # wrong path
    10024: Refusal(200, "Compliance rules triggered"),  # region or compliance
    10029: Refusal(200, "The requested symbol is invalid"),  # not in the whitelist
}

BYBIT_TOO_FREQUENT = "403, access too frequent"  # plain text with 403: over 600 requests in 5 s from one address

CLOUDFLARE_1015 = (  # HTML with 429: the edge in front of CoinMarketCap throttles this address
    "<!DOCTYPE html><html><head><title>Access denied | pro-api.coinmarketcap.com used Cloudflare to restrict access"
    "</title></head><body><h1>Error 1015</h1><p>You are being rate limited</p></body></html>"
)

BAD_GATEWAY = (  # HTML with 502: the edge reaches no server
    "<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"
)

CLOUDFRONT_GEO_BLOCK = (  # HTML with 403: Bybit refuses the country
    "<!DOCTYPE html><html><head><title>ERROR: The request could not be satisfied</title></head><body><h1>403 ERROR"
    "</h1><p>The Amazon CloudFront distribution is configured to block access from your country.</p></body></html>"
)


def coinmarketcap_body(code: int | str, message: str, timestamp: str = "2026-10-08T07:11:11.692Z") -> dict[str, Any]:
    """An error of CoinMarketCap: a status and no data; v3 paths write the code as a string."""
    return {
        "status": {
            "timestamp": timestamp,
            "error_code": code,
            "error_message": message,
            "elapsed": 2,
            "credit_count": 0,
        }
    }


def bybit_body(code: int, message: str, time_ms: int = 1_726_147_060_461) -> dict[str, Any]:
    """An error of Bybit in its envelope; 5004 was recorded with a null result."""
    return {
        "retCode": code,
        "retMsg": message,
        "result": None if code == 5004 else {},
        "retExtInfo": {},
        "time": time_ms,
    }
