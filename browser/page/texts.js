// texts.js: what the page says, in its two languages.
export const TEXTS = {
  en: {
    model: "Model (.bin, .gguf; or drop it here)", lora: "LoRA adapter", detach: "Take the adapter off", prompt: "Your text",
    chat: "Conversation", send: "Write", stop: "Stop", reset: "New text", settings: "Settings", temperature: "temperature",
    penalty: "repetition penalty", tokens: "new tokens at most", seed: "seed (empty: another one each time)",
    reading: "reading", preparing: "setting up", ready: "ready", attached: "adapter attached", detached: "adapter taken off",
    welcome: "Choose a model file. Nothing leaves this machine.", speed: "tokens/s", written: "tokens", read: "prompt", other: "中文", threads: "threads",
  },
  zh: {
    model: "模型文件（.bin、.gguf，也可拖放到此处）", lora: "LoRA 适配器", detach: "卸下适配器", prompt: "输入文字",
    chat: "对话", send: "生成", stop: "停止", reset: "新文本", settings: "设置", temperature: "温度",
    penalty: "重复惩罚", tokens: "最多生成的词元数", seed: "随机种子（留空则每次不同）",
    reading: "正在读取", preparing: "正在准备", ready: "就绪", attached: "适配器已装上", detached: "适配器已卸下",
    welcome: "请选择模型文件。所有数据都留在本机。", speed: "词元/秒", written: "个词元", read: "提示词", other: "English", threads: "线程",
  },
};
