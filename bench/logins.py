"""`python -m bench.logins URL COUNT`: keeps that many logins in flight until it is ended."""

import sys

import uvloop

from bench.http_api import PASSWORD
from bench.load import Plan, Run, request
from bench.seed import EMAIL


def main() -> None:
    """Log in for a minute at most."""
    url, count = sys.argv[1:]
    attempt = request("POST", "/user/login/", body={"email": EMAIL, "password": PASSWORD})
    uvloop.run(Run(Plan(url, [attempt], connections=int(count), seconds=60.0)).run())


if __name__ == "__main__":
    main()
