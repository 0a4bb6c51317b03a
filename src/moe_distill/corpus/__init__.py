"""From sources of text to data/corpus/{train,validation}.parquet; `build.py` is the place to start reading."""
