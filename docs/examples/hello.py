"""The smallest job: two steps, neither done again once it has completed, whatever ends the process."""

from durably import Durably, StepContext

durably = Durably("sqlite:///hello.db")


@durably.job("hello")
def hello(step: StepContext, name: str) -> str:
    """Greet somebody, loudly."""
    greeting = step.run("greet", lambda: f"Hello, {name}!")
    return step.run("shout", greeting.upper)


if __name__ == "__main__":
    durably.migrate()
    run = hello.trigger("world")
    durably.process_until_idle()
    print(durably.wait_for_run(run.id).output)
