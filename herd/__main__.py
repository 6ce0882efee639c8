"""Entry point: runs the command line; a user's mistake becomes one line and exit status 2."""

import sys


def main() -> None:
    """Run `herd`."""
    from herd.base.errors import HerdError
    from herd.cli.app import app
    from herd.runtime.signals import Stopped

    try:
        app(prog_name="herd")
    except HerdError as error:
        print(f"herd: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except Stopped as stopped:
        print(f"herd: {stopped}", file=sys.stderr)  # noqa: T201
        raise
    except KeyboardInterrupt:
        print("herd: stopped; the same command goes on from here", file=sys.stderr)  # noqa: T201
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)


if __name__ == "__main__":
    main()
