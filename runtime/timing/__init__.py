"""Time of programs: their queues simulated with what costs a cycle, and what a real run did, recorded."""
