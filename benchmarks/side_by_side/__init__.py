"""Two systems under the same load on one machine: the parts that ``benchmarks.compare_dynamo`` is made of."""
