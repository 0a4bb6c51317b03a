"""From text to windows of both tokenizers, with positions aligned by bytes; and the map between vocabularies."""
