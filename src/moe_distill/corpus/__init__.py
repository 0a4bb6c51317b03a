"""From sources of text to `data/corpus/{train,validation}.parquet`; start reading at `build.py`."""
