"""Making data sets: fetched, unpacked, checked, prepared once. Reading them is :mod:`mcn.data`."""
