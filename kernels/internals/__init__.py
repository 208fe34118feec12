"""The one place that uses undocumented API of torch and Triton: of Dynamo, Inductor, fake tensors and launchers.

Such API may change with any version. Other files of the package use it only through the modules here, one per topic.
``table/`` lists each name with the reason for its use, the versions of torch in whose source it was read, and what
happens without it. ``python -m innerq_compile env`` lists the names that the installed torch lacks.

To support another version of torch: run ``env`` with it, read the table's entry of each missing name, and handle the
difference in its module here.

This package is imported while torch itself is being imported (``TORCH_LOGS=innerq_compile``), so it imports nothing.
"""
