"""Memory of a device as the interpreter holds it: global and shared, checked, counted, and watched for races."""
