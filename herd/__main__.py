"""Entry point: runs the command line; a user's mistake becomes one line and exit status 2."""

import sys


def main() -> None:
    """Run `herd`."""
    from herd.base.errors import HerdError
    from herd.cli.app import app
    from herd.runtime.signals import Stopped
    from herd.runtime.world import world

    try:
        app(prog_name="herd")
    except HerdError as error:
        say(f"herd: {error}")
        sys.exit(2)
    except Stopped as stopped:
        say(f"herd: {stopped}")
        if world().size > 1:
            from herd.runtime.process import end

            end(stopped.status)
        raise
    except KeyboardInterrupt:
        say("herd: stopped; the same command goes on from here")
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except Exception as error:
        if world().size == 1:
            raise
        import traceback

        say("".join(traceback.format_exception(error)).rstrip())
        sys.exit(1)


def say(text: str) -> None:
    """Print an error; of several processes that fail together only the first does, and says which it is."""
    from herd.runtime.world import world

    found = world()
    if found.size > 1:
        from herd.runtime.process import first_to_fail

        if not first_to_fail():
            return
        text = f"rank {found.rank} of {found.size}: {text}"
    print(text, file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
