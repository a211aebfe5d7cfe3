"""A seeded simulation of Slipway under faults.

Simulated: the handlers of `app.py` and the use cases run as they are, side by side, on a simulated clock
and on the fakes of `tests.fakes`. Functions change places at every call to a port. A call may fail, take
long, lose its answer, see an old state, or be the last one of its function (`Fault`); messages, events and
ticks are lost, doubled or late; the table's stream repeats records, in their order; functions end at their
time limit; executors have few slots, forget what they were asked, lose builds and have faults; clients
repeat what was not answered. Then everything heals, days pass, and what must hold after any fault is checked
(`promises`).

With `ADAPTERS=1` the same stories happen on the real adapters, which takes about ten times as long.
Functions change places at every HTTP call, and each of these may fail before or after its effect, time out,
take effect late, be throttled or see an old index; then the SDK repeats it and pauses, as it would. Lists
come in short pages, and transactions that meet on a row are cancelled.

Not simulated: the gateway (requests call the use cases), signatures, and what AWS does beyond the models of
its services (contract tests hold that of DynamoDB to what the adapters need). Without `ADAPTERS=1` also the
adapters, faults within a page of a log, and changes in the middle of a fake's method.

A seed always tells the same story. To see one again, shrunk to the few faults and requests that it needs:
`make simulate SEEDS=1 FIRST=<seed>`. Each fault has a key ("reconcile 3 call 7") and is drawn by that key
alone, so leaving out one fault or request does not change the others.

`scheduler` has the clock and the functions that run side by side, `faults` decides what goes wrong, `ports`
puts those faults between the use cases and the fakes, `world` is what surrounds Slipway (queues, events,
executor), `story` makes up what clients do, `promises` says what must hold, `run` runs one seed, `shrink`
makes a failing one small, and `recall` puts known faults back to see whether they are found.

`adapters` is the world with the real adapters, `http_calls` puts faults into their HTTP calls, and
`dynamodb`, `aws` and `cluster` answer these. What the fakes have stored is what those services have:
`promises` look at one thing.
"""
