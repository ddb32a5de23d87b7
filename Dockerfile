# syntax=docker/dockerfile:1
# The server and the demo, with the small model inside; any other checkpoint from a volume.
#
#   docker build -t monkey .                                                  # CUDA
#   docker build -t monkey --build-arg TORCH_INDEX=URL .                      # CPU; URL of PyTorch's index of CPU wheels
#   docker run --rm --gpus all -p 127.0.0.1:8000:8000 -v "$HOME/.cache/huggingface:/cache" monkey \
#     serve --host 0.0.0.0 -c echo840/Monkey-Chat
#
# Whoever reaches the published port can ask: keep it at 127.0.0.1, or give MONKEY_API_KEY.

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir build==1.3.0 && python -m build --wheel --outdir /wheel

FROM python:3.11-slim
# One of PyTorch's own indexes, for wheels without CUDA; those of the default index bring CUDA and need its driver alone.
ARG TORCH_INDEX=""
COPY --from=wheel /wheel /wheel
COPY requirements.txt /wheel/
# The pins as constraints: what is only for tests is not installed.
RUN grep -v '^-e' /wheel/requirements.txt > /wheel/constraints.txt \
    && wheel="$(ls /wheel/*.whl)" \
    && pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
       --constraint /wheel/constraints.txt "${wheel}[demo,serve,gguf,quantization]" \
    && rm -r /wheel \
    && useradd --create-home --uid 1000 monkey \
    && mkdir /cache && chown monkey /cache
ENV HF_HOME=/cache GRADIO_ANALYTICS_ENABLED=False
USER 1000
WORKDIR /home/monkey
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["monkey"]
CMD ["serve", "--host", "0.0.0.0"]
