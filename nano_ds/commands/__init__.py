"""One module per `nano-ds` sub-command, each with ``HELP``, ``add_arguments(parser)`` and ``run(args)``.

Heavy imports (torch, deepspeed) stay inside ``run``, so that ``--help`` answers at once.
"""
