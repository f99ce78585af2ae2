"""The same views on plain SQLAlchemy, on other libraries and on ours, side by side: round trips, CPU, throughput.

``python -m tests.benchmarks.peers`` runs it all; ``python -m tests.benchmarks.peers.profile`` shows where ours goes.
"""
