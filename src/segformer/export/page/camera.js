// Photos from the camera of a computer; phones take them with their own app.

// Open the dialog with the camera's view. take: called with [File] when a photo is taken.
export async function openCamera(dialog, take) {
  const video = dialog.querySelector("video");
  const problem = dialog.querySelector("[role=alert]");
  const [shoot, cancel] = dialog.querySelectorAll("button");
  problem.hidden = true;
  shoot.disabled = true;
  dialog.showModal();
  const request = navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  cancel.onclick = () => dialog.close();
  dialog.onclose = async () => {
    video.srcObject = null;
    const stream = await request.catch(() => null);
    stream?.getTracks().forEach((track) => track.stop());
  };
  shoot.onclick = async () => {
    take([await frameOf(video)]);
    dialog.close();
  };
  try {
    video.srcObject = await request;
    await video.play();
    shoot.disabled = false;
    shoot.focus();
  } catch (error) {
    problem.textContent = `The camera cannot be used: ${error.message}`;
    problem.hidden = false;
  }
}

async function frameOf(video) {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const time = new Date().toISOString().slice(0, 19).replace(/\D/g, "-");
  return new File([blob], `photo-${time}.png`, { type: blob.type });
}
