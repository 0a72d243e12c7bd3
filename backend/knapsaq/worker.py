"""Worker: takes jobs from one queue, runs them, and writes how they ended.

Where in the flow: one loop a queue keeps the free slots filled. Each turn sends the
outcomes of what has ended and claims as many jobs as there is room for, in one
script call; under load that call is shared by dozens of jobs. With nothing to do
the loop waits for a push, a due time or an order to stop.

Invariants, each a test in ``tests/redis/test_worker.py``:

* a worker never runs more jobs at once than its concurrency, those not counted that wait for other jobs;
* an outcome is kept until Redis has it, also through an outage;
* stopping takes no new job, waits for running ones as long as its grace, and puts back the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from redis.exceptions import RedisError
from saq.job import Status
from saq.queue import Queue as SaqQueue
from saq.worker import Worker as SaqWorker
from saq.worker import ensure_coroutine_function_many

from knapsaq import events
from knapsaq.aftermath import Aftermath
from knapsaq.batching import call_in
from knapsaq.claims import CRASH_LIMIT, DIED, Advance, Claim, Settlement
from knapsaq.context import Context
from knapsaq.errors import KnapsaqError
from knapsaq.exchange import Exchange
from knapsaq.executor import Executor
from knapsaq.job import PROGRESS
from knapsaq.lineage import origin
from knapsaq.liveness import LeaseKeeper
from knapsaq.mending import Mender
from knapsaq.outcomes import Aborted, Dead, Failed, Outcome, Released, Retried
from knapsaq.overseer import Overseer
from knapsaq.providers import Injector
from knapsaq.queue import Queue
from knapsaq.redis.cluster import in_cluster
from knapsaq.registry import Registry, refuse_duplicates
from knapsaq.relay import Relay
from knapsaq.running import Running
from knapsaq.scheduler import Scheduler
from knapsaq.settings import Settings
from knapsaq.slots import Slots
from knapsaq.steering import Tidier
from knapsaq.timing import now_ms
from knapsaq.upkeep import CronJobs, Rescuer, repeat
from knapsaq.wakeup import BLOCK_SECONDS, Wakeup


class Worker(SaqWorker[Any]):
    """Runs the jobs of one queue.

    Args:
        queue: The queue.
        functions: Further functions, called as SAQ calls them; tasks come from the registry.
        registry: The tasks; the queue's registry unless given.
        settings: The queue's settings unless given.
        concurrency: How many jobs run at once; ``Settings.concurrency`` unless given.
        saq_options: Everything else that ``saq.Worker`` takes; it wins over SAQ's settings in the registry.

    Raises:
        MissingProviderError: A task of the queue asks for something that nobody provides.
        TaskDefinitionError, InvalidArgumentsError: A task's annotations, limits or schedules cannot be used.
        RouteError: A route of the registry leads to no task.
    """

    queue: Queue

    def __init__(
        self,
        queue: SaqQueue,
        functions: Any = (),
        *,
        registry: Registry | None = None,
        settings: Settings | None = None,
        concurrency: int | None = None,
        **saq_options: Any,
    ) -> None:
        if not isinstance(queue, Queue):
            raise TypeError(f"a knapsaq Worker needs a knapsaq Queue, not {queue!r}")
        self.settings = settings or queue.settings
        self.registry = registry or queue.registry or Registry()
        self.registry.load()
        refuse_duplicates(functions)
        defaults = {"concurrency": self.settings.concurrency, **self.registry.worker_options(queue.name)}
        given = {"concurrency": concurrency} if concurrency else {}
        super().__init__(queue, functions, **{**defaults, **saq_options, **given})
        tasks = self.registry.get_all_tasks()
        for task in tasks:
            task.verify(self.settings.task_timeout)
        self._injector = Injector(tasks)
        self._executor = Executor(self.registry, self._injector, self.settings, self.functions, self.concurrency)
        self._scheduler = Scheduler(queue, tasks, self.id)
        self._crons = CronJobs(queue, self.cron_jobs, self.cron_tz)
        self._running: dict[str, Running] = {}
        self._begun: list[Running] = []
        self._signal = asyncio.Event()
        self._slots = Slots(self._signal.set)
        self._relay = Relay(queue, self.id) if in_cluster(queue.redis) else None
        on_relay = self._relay.news.set if self._relay else lambda: None
        self._wakeup = Wakeup(queue, self._signal, self._scheduler.hear, on_relay)
        self._exchange = Exchange(queue, self.id, self.concurrency, self._running, self._wakeup)
        self._overseer = Overseer(queue, self._running, self._give_up)
        self._expired = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()
        self._aftermath = Aftermath(self._after_process if self.after_process else None)
        self._deadlines: list[asyncio.TimerHandle] = []
        self._burst_left = self.max_burst_jobs if self.burst else None
        grace = self._shutdown_grace_period_s
        self.grace = self.settings.shutdown_grace if grace is None else float(grace)

    async def start(self) -> None:
        """Run jobs until ``stop`` is called, a signal arrives, or, in burst mode, the queue is empty."""
        origin.set(None)  # what it queues by itself is no follower of whoever starts it
        self.loop = loop = asyncio.get_running_loop()
        self.event = self._exchange.stop = asyncio.Event()
        self._ended.clear()
        self._exchange.begin(lambda: not (self.tasks or self._aftermath.busy))
        for number in self.SIGNALS:
            loop.add_signal_handler(number, self.request_stop)
        keeper = LeaseKeeper(
            self.queue,
            self.id,
            on_expired=lambda: call_in(loop, self._expired.set),
            on_work=lambda: call_in(loop, self._exchange.hear_of_work),
        )
        duties: list[asyncio.Task[None]] = []
        try:
            for function in self.startup or ():
                await function(self.context)
            await self._executor.open()
            await asyncio.to_thread(keeper.renew)
            keeper.start()
            self._exchange.lapses = lambda: keeper.lapses
            keeper.guard(lambda task: next((it.claim.job for it in [*self._running.values()] if it.task is task), None))
            events.worker_started(self.id, self.queue.name, self.concurrency, len(self.registry.names()))
            duties = [asyncio.create_task(duty) for duty in self._duties()]
            await self._work()
        except asyncio.CancelledError:
            self.request_stop()
            await self._work()
        finally:
            for number in self.SIGNALS:
                loop.remove_signal_handler(number)
            try:
                await self._close(duties, keeper)
            finally:
                self._exchange.end()
                self._ended.set()
                events.worker_stopped(self.id)

    async def stop(self) -> None:
        """Take no more jobs, give the running ones the grace period, put back the rest; return when that is done."""
        if not self.event.is_set():
            self.request_stop()
        await self._ended.wait()

    def request_stop(self) -> None:
        """Begin to stop; a second call does not wait for the running jobs any longer."""
        loop = asyncio.get_running_loop()
        hard = self._cancellation_hard_deadline_s
        if self.event.is_set():
            self._release_running()
            self._deadlines.append(loop.call_later(hard, self._give_up_running))
            self._exchange.stop_by = loop.time() + hard
            return
        self.event.set()
        self._signal.set()
        self._executor.hurry()
        self._exchange.stop_by = loop.time() + self.grace + hard
        events.worker_stopping(self.id, len(self._running), self.grace)
        if self._running:
            self._deadlines += (
                loop.call_later(self.grace, self._release_running),
                loop.call_later(self.grace + hard, self._give_up_running),
            )

    async def _close(self, duties: list[asyncio.Task[None]], keeper: LeaseKeeper) -> None:
        """Close everything; what fails is told, and does not keep the rest open."""
        for timer in self._deadlines:
            timer.cancel()
        for duty in duties:
            duty.cancel()
        await asyncio.gather(*duties, return_exceptions=True)
        await self._aftermath.ended(self.grace)
        await self._wakeup.close()
        steps: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("ending the processes", self._executor.close),
            *([("relaying", self._relay.run_once)] if self._relay else ()),
            ("giving the lease up", lambda: asyncio.to_thread(keeper.stop)),
            ("taking the worker off the list", lambda: self.queue.forget_worker(self.id)),
            ("a provider's clean-up", self._injector.close),
            ("a shutdown function", self._run_shutdown),
        ]
        for name, step in steps:
            try:
                await step()
            except Exception as error:  # noqa: BLE001 - the rest has to be closed all the same
                if isinstance(error, KnapsaqError) or not isinstance(error, (RedisError, OSError)):
                    events.duty_failed(name, error)
        self.pool.shutdown(wait=False, cancel_futures=True)

    async def _run_shutdown(self) -> None:
        for function in ensure_coroutine_function_many(self.shutdown, self.pool) if self.shutdown else ():
            await function(self.context)

    async def _work(self) -> None:
        while not self.event.is_set() or self._running or self._exchange.pending or self._exchange.ahead:
            self._signal.clear()
            room = 0 if self.event.is_set() else self.concurrency - len(self._running) + self._slots.freed
            room = max(0, min(room, self.concurrency))
            if self._burst_left is not None:
                room = min(room, self._burst_left)
            self._exchange.post(*self._stamps())
            step, drained = await self._exchange.next(room)
            if step is None:
                continue
            for claim in step.claims:
                self._begin(claim)
            self._exchange.post(*step.unreadable)
            for job_id, abort in step.aborts.items():
                if running := self._running.get(job_id):
                    running.interrupt(Aborted(abort.reason), gently=not abort.terminate)
            # Jobs that do not wait for anything end in this turn, and need no stamp.
            await asyncio.sleep(0)
            if not (step.more or self._exchange.pending) and not any(self._goes_on(one) for one in self._begun):
                await self._rest(step, drained=drained)

    async def _rest(self, step: Advance, *, drained: bool) -> None:
        """Wait until there is something to do."""
        if self.burst and not self._running and (drained or self._burst_left == 0) and not self.event.is_set():
            self.request_stop()
        if self.event.is_set() and not self._running:
            return
        if drained and not self.event.is_set() and not step.paused:  # the push of a job would end each watch at once
            self._exchange.watch()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(step.wait if drained else BLOCK_SECONDS):
                await self._signal.wait()

    def _stamps(self) -> list[Settlement]:
        """Return what shows jobs as active that have been begun since the last call and go on."""
        begun, self._begun = self._begun, []
        return [stamp for one in begun if self._goes_on(one) and (stamp := self.queue.stamp(one.claim))]

    def _goes_on(self, running: Running) -> bool:
        return self._running.get(running.claim.job_id) is running

    def _begin(self, claim: Claim) -> None:
        job = claim.job
        if self._burst_left is not None:
            self._burst_left -= 1
        if crashes := claim.crashes:
            job.alone = crashes == CRASH_LIMIT - 1  # its last chance; who ends a process does not take a batch along
            if crashes >= CRASH_LIMIT:
                job.attempts += job.status is not Status.ACTIVE  # the last one, if its worker died before it was shown
                self._end_unstarted(claim, Dead(f"{DIED} {crashes} times"))
                return
        # Also where this machine's clock is behind: Redis has held one that is over to no limit.
        if job.meta and (reason := job.expired(max(self.queue.now_ms(), claim.since_ms))):
            self._end_unstarted(claim, Aborted(reason))
            return
        if job.status is not Status.ACTIVE:  # else its worker died, which spends no attempt
            job.attempts += 1
        if self.event.is_set():
            self._exchange.post(self.queue.settlement(claim, Released("the worker stopped")))
            return
        if job.progress:  # of an attempt whose worker died
            job.progress = 0.0
            job.forget(PROGRESS)
        job.started = now_ms()
        job.worker_id = self.id
        if stale := self._running.pop(claim.job_id, None):
            stale.interrupt(Released("its lease had run out"))  # its outcome would be refused
        running = Running(claim, Context(self.context, job=job, queue=self.queue))
        if self.registry.layers.in_use:
            self.registry.surround(running.ctx, self.queue.name)
        running.task = asyncio.create_task(self._run(running), name=job.function)
        self.tasks.add(running.task)
        self._running[claim.job_id] = running
        self._begun.append(running)

    def _end_unstarted(self, claim: Claim, outcome: Outcome) -> None:
        """End a job that is not to be run."""
        self._exchange.post(self.queue.settlement(claim, outcome))
        ctx = Context(self.context, job=claim.job, queue=self.queue)
        self._aftermath.begin(self.registry.surround(ctx, self.queue.name), outcome, ran=False)

    async def _run(self, running: Running) -> None:
        running.begun = True
        running.slot = self._slots.enter()
        origin.set(running.claim.job)
        outcome = running.ends_as or await self._attempt(running, running.ctx)
        if running.ends_as is not None:
            outcome = running.settled(running.ends_as, outcome)
        self.tasks.discard(running.task)
        if not self._goes_on(running):
            return  # it was given up while it did not end
        self._end(running, outcome)

    async def _attempt(self, running: Running, ctx: Context) -> Outcome:
        try:
            if self.before_process:
                await self._before_process(ctx)
            return await self._executor.run(running.claim.job, ctx)
        except asyncio.CancelledError:
            if running.ends_as is not None:
                return running.ends_as
            reason = "the task raised CancelledError, though nobody had cancelled it"
        except Exception as error:  # noqa: BLE001 - a hook's fault ends this attempt alone
            reason = f"a before_process function raised {error!r}"
        job = running.claim.job
        return Retried(reason, job.next_retry_delay()) if job.retryable else Failed(reason)

    def _release_running(self) -> None:
        """Interrupt the running jobs; each is put back without spending an attempt."""
        for running in self._running.values():
            running.interrupt(Released("the worker stopped"), gently=True)

    def _give_up_running(self) -> None:
        """Put back the jobs that do not end although they were cancelled."""
        for running in list(self._running.values()):
            self._give_up(running, running.ends_as or Released("the worker stopped"))

    def _give_up(self, running: Running, outcome: Outcome) -> None:
        events.cancellation_ignored(running.claim.job)
        running.task.cancel()
        self._end(running, outcome)

    def _end(self, running: Running, outcome: Outcome) -> None:
        del self._running[running.claim.job_id]
        if running.slot is not None:
            running.slot.leave()
        self._exchange.post(self.queue.settlement(running.claim, outcome))
        self._signal.set()
        self._aftermath.begin(running.ctx, outcome)

    def _duties(self) -> list[Coroutine[Any, Any, None]]:
        timers = self.timers
        return [
            repeat("the rescuer", self._rescue_when_expired, 0),
            repeat("the listener", self._wakeup.listen, 0),
            repeat("the scheduler", self._scheduler.run, 0),
            # Half of SAQ's time, as a turn that is late must not miss a due time.
            *([repeat("SAQ's cron jobs", self._crons.run_once, timers["schedule"] / 2)] if self.cron_jobs else ()),
            repeat("the sweeper", self.queue.sweeper.run_once, timers["sweep"]),
            repeat("the tidier", Tidier(self.queue).run_once, timers["sweep"]),
            repeat("the workflows' mender", Mender(self.queue).run_once, timers["sweep"]),
            *([repeat("the relay", self._relay.run, 0)] if self._relay else ()),
            repeat("the overseer", self._overseer.run_once, timers["abort"]),
            repeat("worker info", lambda: self.worker_info(timers["worker_info"] * 3), timers["worker_info"]),
        ]

    async def schedule(self, lock: int = 1) -> None:
        """Queue what is due, as the worker itself does all the time; for programs that step it by hand."""
        await self._scheduler.run_once()
        await self._crons.run_once()
        await self.queue.schedule(lock)

    async def process(self) -> bool:
        """Take one job and run it to its end, for programs that step a worker by hand.

        Returns:
            Whether there was one within ``dequeue_timeout`` seconds; 0 waits until there is.
        """
        self.loop = asyncio.get_running_loop()
        keeper = LeaseKeeper(self.queue, self.id)
        try:
            if (claim := await self._wakeup.claim_one(self.id, self.dequeue_timeout or math.inf)) is None:
                return False
            keeper.start()
            await self._executor.open(hurried=True)
            self._begin(claim)
            await self.queue.advance(self.id, self._stamps(), 0)
            await asyncio.gather(*self.tasks)
            await self._aftermath.ended()
            if self._relay:
                await self._relay.run_once()
        finally:
            while self._exchange.pending:
                await self._exchange.next(0)
            await self._wakeup.close()
            await self._injector.close()
            await self._executor.close()
            await asyncio.to_thread(keeper.stop)  # which leaves the lease as long as a claim is left
        return True

    async def _rescue_when_expired(self) -> None:
        await self._expired.wait()
        self._expired.clear()
        await Rescuer(self.queue).run_once()
